"""Nipype's MultiProc plugin, made to survive the death of a worker process.

When the kernel kills a worker (most often for lack of memory), Nipype 1.11 waits for its result for ever.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

MAX_TRIES = 2
LOST_WORKER = (
    "MemoryError: a worker process was killed while this step ran, most often for lack of memory; "
    "give more memory to the job, or fewer --nprocs, or a larger --resolution"
)


class RobustMultiProc(MultiProcPlugin):
    """MultiProc that runs a step again when its worker died, and reports it as failed the second time.

    It also takes the images one after the other. All steps that run at the time lose their worker, the innocent with
    the guilty: hence the second try.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._tries: dict[str, int] = {}
        self._nodes: dict[int, Any] = {}

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        try:
            taskid = int(super()._submit_job(node, updatehash))
        except BrokenExecutor:
            self._restart_pool()
            # The failed submission has already counted up the task number.
            taskid = int(super()._submit_job(node, updatehash))
        self._nodes[taskid] = node
        return taskid

    def _sort_jobs(self, jobids: Any, scheduler: str = "tsort") -> list[int]:
        # Image by image: a run that is stopped half-way leaves finished images, not every image half finished.
        return sorted(jobids, key=lambda jobid: self.procs[jobid].fullname.rpartition(".")[0])

    def _async_callback(self, args: Future) -> None:
        if not isinstance(args.exception(), BrokenExecutor):
            super()._async_callback(args)

    def _restart_pool(self) -> None:
        self.pool = ProcessPoolExecutor(
            max_workers=self.processors, initializer=process_initializer, initargs=(self._cwd,)
        )

    def _get_result(self, taskid: int) -> Any:
        result = super()._get_result(taskid)
        future = self._task_obj.get(taskid)
        if result is not None or future is None or not future.done():
            return result
        error = future.exception()
        if error is None:
            return None
        node = self._nodes[taskid]
        tries = self._tries[node.fullname] = self._tries.get(node.fullname, 0) + 1
        if tries >= MAX_TRIES:
            return {"result": None, "traceback": [LOST_WORKER], "taskid": taskid}
        try:
            retry = self.pool.submit(run_node, node, False, taskid)
        except BrokenExecutor:
            self._restart_pool()
            retry = self.pool.submit(run_node, node, False, taskid)
        retry.add_done_callback(self._async_callback)
        self._task_obj[taskid] = retry
        return None
