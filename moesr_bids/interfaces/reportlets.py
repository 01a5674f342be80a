"""The figures of one image (reportlets) as a Nipype interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, isdefined, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids.bids.record import SRRecord
from moesr_bids.bids.schema import make
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec


class _ImageReportletsInputSpec(BaseInterfaceInputSpec):
    preproc_file = File(exists=True, mandatory=True, desc="bias-corrected image, own grid")
    mask_file = File(exists=True, mandatory=True, desc="brain mask, own grid")
    bias_file = File(exists=True, desc="natural logarithm of the bias field, own grid")
    acquired_file = File(exists=True, desc="image before gradient nonlinearity was corrected, own grid")
    unwarped_file = File(exists=True, requires=["acquired_file"], desc="image after it was corrected, own grid")
    field_file = File(exists=True, requires=["acquired_file"], desc="ITK displacement field of the correction")
    sr_file = File(exists=True, requires=["sr_record"], desc="super-resolved image, target grid")
    sr_record = traits.Dict(desc="record of super-resolution: the point-spread function of the input")
    tissue_file = File(exists=True, requires=["sr_file"], desc="tissue labels of the super-resolved image")
    dseg_file = File(exists=True, requires=["sr_file"], desc="structures of the brain in the super-resolved image")
    uncertainty_file = File(exists=True, desc="standard deviation of the error, target grid")
    expert_files = traits.List(
        File(exists=True), requires=["sr_file"], desc="gate-<expert> and difference-<expert>, target grid"
    )
    residual_file = File(exists=True, desc="input minus A(output) in noise units, own grid")
    scan_files = traits.List(File(exists=True), requires=["sr_file"], desc="bias-corrected scans of a joined image")
    residual_files = traits.List(File(exists=True), requires=["scan_files"], desc="and the residual of each")
    warped_file = File(exists=True, requires=["template_file"], desc="image in the template's space")
    template_file = File(exists=True, requires=["warped_file"], desc="template image")
    template_mask_file = File(exists=True, desc="brain mask of the template: its outline is drawn")
    template_name = Str("template", usedefault=True, desc="name of the template, shown on its side")
    reference_file = File(exists=True, requires=["coregistered_file"], desc="reference image of the session")
    reference_mask_file = File(exists=True, desc="its brain mask")
    coregistered_file = File(exists=True, requires=["reference_file"], desc="image on the reference's grid")
    reference_name = Str("reference", usedefault=True, desc="name of the reference image, shown on its side")


class _ImageReportletsOutputSpec(RecordedOutputSpec):
    out_files = traits.List(File, desc="figures, each named <desc>.<extension>")


class ImageReportlets(RecordedInterface):
    """Draw the figures that the given files allow.

    ``brainmask.png`` is always drawn. The others need files:

    - ``gradunwarp.png``: the image before and after the correction of gradient nonlinearity, and the field;
    - ``bias.png``: the bias field;
    - ``registration.html``: template and registered image;
    - ``coregistration.html``: the reference of the session and the aligned image;
    - ``slider.html``, ``departure.png``, ``spectrum.png``: the super-resolved image;
    - ``zooms.html``: its tissues;
    - ``structures.png``: its segmentation;
    - ``uncertainty.png``: its uncertainty;
    - ``experts.png``: the maps of a mixture of experts;
    - ``residual.png``: the residual;
    - ``scans.png``: the scans of a joined image, instead of ``residual.png`` and ``spectrum.png``.
    """

    input_spec = _ImageReportletsInputSpec
    output_spec = _ImageReportletsOutputSpec

    def _given(self, name: str) -> Path | None:
        value = getattr(self.inputs, name)
        return Path(value) if isdefined(value) else None

    def _sr_record(self) -> SRRecord:
        return make(SRRecord, self.inputs.sr_record)

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        # Imported here: matplotlib takes a second, and building the workflow does not need it.
        from moesr_bids.reports.planes import forget_volumes

        try:
            figures = self._draw(Path(runtime.cwd))
        finally:
            forget_volumes()  # this process goes on to other steps
        self._results["out_files"] = [str(figure) for figure in figures]
        return {"Figures": [figure.name for figure in figures]}

    def _draw(self, folder: Path) -> list[Path]:
        """Draw all figures into a folder."""
        from moesr_bids.reports.figures import plot_mask
        from moesr_bids.reports.residual import plot_residual

        preproc, mask = Path(self.inputs.preproc_file), Path(self.inputs.mask_file)
        output = self._given("sr_file")
        figures = [plot_mask(preproc, mask, folder / "brainmask.png"), *self._of_preprocessing(folder, preproc, mask)]
        figures += self._of_registration(folder)
        if output is not None:
            figures += self._of_output(folder, preproc, mask, output)
        residual = self._given("residual_file")
        if residual and not self.inputs.scan_files:
            noise_alone = self._sr_record().data_consistency.noise_alone_std
            figures.append(plot_residual(residual, mask, folder / "residual.png", noise_alone=noise_alone))
        return figures

    def _of_preprocessing(self, folder: Path, preproc: Path, mask: Path) -> list[Path]:
        """Draw the corrections of gradient nonlinearity and bias field."""
        from moesr_bids.reports.figures import plot_bias, plot_gradunwarp

        figures = []
        acquired, unwarped, displacement = map(self._given, ("acquired_file", "unwarped_file", "field_file"))
        if acquired and unwarped and displacement:
            figures.append(plot_gradunwarp(acquired, unwarped, displacement, folder / "gradunwarp.png"))
        if field := self._given("bias_file"):
            figures.append(plot_bias(preproc, field, folder / "bias.png", mask_path=mask))
        return figures

    def _of_registration(self, folder: Path) -> list[Path]:
        """Draw the image on the template, and on the reference of its session."""
        from moesr_bids.reports.slider import plot_registration

        figures = []
        if (template := self._given("template_file")) and (warped := self._given("warped_file")):
            figures.append(
                plot_registration(
                    template,
                    warped,
                    folder / "registration.html",
                    template_mask_path=self._given("template_mask_file"),
                    template_name=self.inputs.template_name,
                )
            )
        if (reference := self._given("reference_file")) and (aligned := self._given("coregistered_file")):
            figures.append(
                plot_registration(
                    reference,
                    aligned,
                    folder / "coregistration.html",
                    template_mask_path=self._given("reference_mask_file"),
                    template_name=self.inputs.reference_name,
                    rigid=True,
                )
            )
        return figures

    def _of_output(self, folder: Path, preproc: Path, mask: Path, output: Path) -> list[Path]:
        """Draw the super-resolved image, its tissues, its uncertainty and the maps of the experts."""
        from moesr_bids.reports.departures import plot_departures
        from moesr_bids.reports.experts import plot_experts
        from moesr_bids.reports.figures import plot_structures, plot_uncertainty
        from moesr_bids.reports.scans import plot_scans
        from moesr_bids.reports.slider import plot_slider
        from moesr_bids.reports.spectrum import plot_spectrum
        from moesr_bids.reports.zooms import plot_zooms

        figures = [
            plot_slider(preproc, output, folder / "slider.html", mask_path=mask),
            plot_departures(preproc, output, mask, folder / "departure.png"),
        ]
        if tissues := self._given("tissue_file"):
            figures.append(plot_zooms(preproc, output, tissues, folder / "zooms.html"))
        if structures := self._given("dseg_file"):
            figures.append(plot_structures(output, structures, folder / "structures.png"))
        if uncertainty := self._given("uncertainty_file"):
            figures.append(plot_uncertainty(output, uncertainty, folder / "uncertainty.png", mask_path=mask))
        if self.inputs.expert_files:
            maps = {Path(file).name.split(".")[0]: Path(file) for file in self.inputs.expert_files}
            figures.append(plot_experts(output, mask, maps, folder / "experts.png"))
        record = self._sr_record()
        if record.joined is None:
            return [*figures, plot_spectrum(preproc, output, mask, folder / "spectrum.png", record.psf)]
        scans, residuals = (list(map(Path, files)) for files in (self.inputs.scan_files, self.inputs.residual_files))
        return [*figures, plot_scans(output, mask, scans, residuals, record.joined, folder / "scans.png")]
