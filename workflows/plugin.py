"""Nipype's MultiProc plugin, made to survive the death of a worker process.

When the kernel kills a worker (most often for lack of memory), Nipype 1.11 waits for its result for ever. Its pool also
ends all other workers, so it is unknown which step the dead worker had. Here each worker is a pool of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from moesr_bids.interfaces.processes import end_with

MAX_TRIES = 2
_LEVELS_OF_IMAGE = 3  # run, participant, image
LOST_WORKER = (
    "MemoryError: a worker process was killed while this step ran, most often for lack of memory; "
    "give more memory to the job, or fewer --nprocs, or a larger --resolution"
)


def _start_worker(folder: str, parent: int | None) -> None:
    end_with(os.getppid() if parent is None else parent)
    process_initializer(folder)


class Workers(Executor):
    """Processes that take one task at a time each; if one dies, only its own task fails.

    Parameters
    ----------
    folder : str
        Folder that they work in.
    context : str, optional
        How they are started: a name that `multiprocessing.get_context` takes.

    """

    def __init__(self, folder: str, context: str | None = None) -> None:
        # With forkserver the server is the parent of the workers, and ends with this process.
        parent = None if get_context(context).get_start_method() == "forkserver" else os.getpid()
        self._make: Callable[[], ProcessPoolExecutor] = lambda: ProcessPoolExecutor(
            1, mp_context=get_context(context), initializer=_start_worker, initargs=(folder, parent)
        )
        self._idle: list[ProcessPoolExecutor] = []
        self._busy: set[ProcessPoolExecutor] = set()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a worker that is idle, or in a new one; the caller limits how many run at once."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else self._make()
            try:
                future = worker.submit(fn, *args, **kwargs)
            except BrokenExecutor:  # killed while it had nothing to do
                continue
            with self._lock:
                self._busy.add(worker)
            future.add_done_callback(partial(self._release, worker))
            return future

    def _release(self, worker: ProcessPoolExecutor, done: Future[Any]) -> None:
        with self._lock:
            self._busy.discard(worker)
            # A broken pool ends by itself.
            if not isinstance(done.exception(), BrokenExecutor):
                self._idle.append(worker)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all workers."""
        with self._lock:
            workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.shutdown(wait, cancel_futures=cancel_futures)


class RobustMultiProc(MultiProcPlugin):
    """MultiProc that runs a step again if its worker died, and reports it as failed the second time.

    It also takes the images one after the other. It calls ``beat`` of its arguments, if there is one, several times a
    second while steps run.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool: Executor = Workers(self._cwd, self.plugin_args.get("mp_context"))
        self._tries: dict[str, int] = {}
        self._nodes: dict[int, Any] = {}
        self._beat: Callable[[], None] = self.plugin_args.get("beat") or (lambda: None)

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        taskid = int(super()._submit_job(node, updatehash))
        self._nodes[taskid] = node
        return taskid

    def _sort_jobs(self, jobids: Any, scheduler: str = "tsort") -> list[int]:
        # Image by image: a run that is stopped half-way leaves some images finished, not all of them half finished.
        return sorted(jobids, key=lambda jobid: self.procs[jobid].fullname.split(".")[:_LEVELS_OF_IMAGE])

    def _async_callback(self, args: Future) -> None:
        if args.exception() is None:
            super()._async_callback(args)

    def _get_result(self, taskid: int) -> Any:
        self._beat()
        result = super()._get_result(taskid)
        future = self._task_obj.get(taskid)
        if result is not None or future is None or not future.done():
            return result
        error = future.exception()
        if error is None:
            return None  # its callback is about to come
        # A pool breaks with a cause when it cannot read what the step gave back: the same would happen again.
        if not isinstance(error, BrokenExecutor) or error.__cause__ is not None:
            return {"result": None, "traceback": format_exception(error), "taskid": taskid}
        node = self._nodes[taskid]
        tries = self._tries[node.fullname] = self._tries.get(node.fullname, 0) + 1
        if tries >= MAX_TRIES:
            return {"result": None, "traceback": [LOST_WORKER], "taskid": taskid}
        self._task_obj[taskid] = retry = self.pool.submit(run_node, node, False, taskid)
        retry.add_done_callback(self._async_callback)
        return None
