"""Individual and cohort reports, written from the files of an output folder alone."""
