"""How Nipype runs: its configuration and its plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesr_bids.config import Settings


def configure_nipype(settings: Settings) -> None:
    """Set Nipype's configuration for this run."""
    from nipype import config, logging

    from moesr_bids.workflows.plugin import RobustMultiProc

    here = settings.use_plugin is None or read_plugin(settings.use_plugin)[0] is RobustMultiProc
    config.update_config(
        {
            "execution": {
                "crashfile_format": "txt",
                "create_report": "false",
                # Otherwise a node that has to give fewer outputs would count as another node, and run again.
                "remove_unnecessary_outputs": "false",
                # A queue answers slowly if it is asked too often, and so does a file system of many machines.
                "poll_sleep_duration": "0.2" if here else "10",
                "job_finished_timeout": "60",
                "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
                "check_version": "false",
            },
            "logging": {
                "workflow_level": ("CRITICAL", "INFO", "DEBUG")[min(settings.verbose, 2)],
                "interface_level": ("CRITICAL", "INFO", "DEBUG")[min(settings.verbose, 2)],
                "utils_level": ("CRITICAL", "INFO", "DEBUG")[min(settings.verbose, 2)],
            },
        }
    )
    logging.update_logging(config)


def make_plugin(
    settings: Settings, *, gpus: int, callback: Callable[[Any, str], None], beat: Callable[[], None]
) -> Any:
    """Return the plugin that runs the workflow.

    Parameters
    ----------
    settings : Settings
        CPUs, memory, or the user's plugin file.
    gpus : int
        GPU slots. Without this number Nipype sets no limit where it sees no GPU.
    callback : callable
        Called with each node and ``start``, ``end`` or ``exception``.
    beat : callable
        Called several times a second while steps run; not called by a plugin of the user.

    """
    from moesr_bids.workflows.plugin import RobustMultiProc

    arguments: dict[str, Any] = {
        "n_procs": settings.nprocs,
        "memory_gb": settings.mem_gb,
        "n_gpu_procs": gpus,
        "raise_insufficient": False,
        "status_callback": callback,
    }
    if settings.use_plugin is None:
        return RobustMultiProc(plugin_args={**arguments, "beat": beat})
    plugin, own = read_plugin(settings.use_plugin)
    return plugin(plugin_args={**arguments, **own})


def read_plugin(path: Path) -> tuple[type[Any], dict[str, Any]]:
    """Read a YAML file with ``plugin`` and ``plugin_args``.

    Returns
    -------
    plugin : type
        Nipype's plugin class.
    arguments : dict
        Its arguments.

    Raises
    ------
    ValueError
        If the file cannot be read, is not such a YAML file, or names no plugin of Nipype.

    """
    import nipype.pipeline.plugins as plugins
    import yaml

    from moesr_bids.workflows.plugin import RobustMultiProc

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"plugin file {path} cannot be read: {error}") from None
    name = content.get("plugin") if isinstance(content, dict) else None
    if name == "MultiProc":
        return RobustMultiProc, content.get("plugin_args") or {}
    plugin = getattr(plugins, f"{name}Plugin", None)
    if plugin is None:
        raise ValueError(f"plugin file {path}: {name!r} is none of Nipype's plugins")
    return plugin, content.get("plugin_args") or {}
