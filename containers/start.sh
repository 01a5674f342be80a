#!/bin/sh
# Starts the command of this name from /opt/moesr, whatever Python or libraries the environment of the host asks for.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE LD_PRELOAD LD_LIBRARY_PATH
export PYTHONNOUSERSITE=1
[ -d /.singularity.d ] && export MOESR_BIDS_CONTAINER_TYPE=apptainer
# Libraries keep small files in HOME; where there is none that can be written, they do beside the temporary files.
[ -n "$HOME" ] && [ -w "$HOME" ] || export HOME="${TMPDIR:-/tmp}"
# Where container engines put the libraries of NVIDIA's driver.
for folder in /.singularity.d/libs /usr/local/nvidia/lib64; do
    [ -d "$folder" ] && export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
done
exec "/opt/moesr/bin/${0##*/}" "$@"
