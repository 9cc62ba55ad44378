"""What runs inside of Ray Train's own processes: it tells what was reported, hands the notice to stop on to the workers, and holds
them once a checkpoint that came after it is kept.

The notice reaches a script as Ray's own news of a preemption (`ray.train.get_preemption_info`), so that one that saves at that
saves now. What is told goes by the control store of the job's Ray, wherever its processes are. The process that called `fit` is
the other side (`training.integrations.ray`).
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from ray.experimental import internal_kv
from ray.train import CheckpointConsistencyMode, get_all_reported_checkpoints
from ray.train.v2._internal.execution.callback import ReportCallback, TrainContextCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.preemption import PreemptionInfo

_LOOK_S: Final = 0.2
_HELD_S: Final = 30.0
"""Beyond the deadline nobody is held: whoever was to end the process has not."""
_STEPS: Final = ("step", "global_step", "steps", "iteration", "training_iteration")
_LOSSES: Final = ("loss", "train_loss", "train/loss")


class News(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is."""

    reports: int = 0
    """That all its workers have made in this attempt."""
    kept: int = 0
    """Which of them came with a checkpoint last; 0 = none."""
    step: int = 0
    loss: float | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The notice to stop."""

    deadline_ms: int | None
    """Unix time."""


_Said = TypeVar("_Said", News, Wish)


class Words:
    """What both sides say to each other of one run, in the control store of its Ray."""

    def __init__(self, token: str) -> None:
        """The token tells the run apart from all others."""
        self._token = token

    def tell(self, news: News) -> None:
        self._put("news", news)

    def news(self) -> News | None:
        """None = its workers have not begun, or the control store does not answer."""
        return self._got("news", News)

    def hold(self, news: News) -> None:
        """A worker makes no step after this one."""
        self._put("held", news)

    def held(self) -> News | None:
        return self._got("held", News)

    def ask(self, wish: Wish) -> None:
        self._put("stop", wish)

    def wish(self) -> Wish | None:
        return self._got("stop", Wish)

    def _key(self, what: str) -> bytes:
        return f"fabric-train:{self._token}:{what}".encode()

    def _put(self, what: str, said: News | Wish) -> None:
        internal_kv._internal_kv_put(self._key(what), msgspec.json.encode(said), overwrite=True)  # noqa: SLF001

    def _got(self, what: str, kind: type[_Said]) -> _Said | None:
        try:
            found = internal_kv._internal_kv_get(self._key(what))  # noqa: SLF001
        except Exception:  # noqa: BLE001  # Ray is down, or away for a moment: it is asked again
            return None
        return msgspec.json.decode(found, type=kind) if found else None


class Reports(WorkerGroupCallback, ReportCallback):  # type: ignore[misc]  # Ray's classes have no types
    """In the controller: tells of reports when they are kept, and hands on the notice."""

    def __init__(self, words: Words, *, before: int, step_file: Path | None) -> None:
        """Nothing was heard yet.

        Args:
            words: with the process that called `fit`.
            before: how many reports earlier attempts have made that count.
            step_file: where the newest kept step is written for who keeps the folder; None = nowhere.
        """
        self._words, self._before, self._step_file = words, before, step_file
        self._news = News(step=before)
        self._workers: dict[int, tuple[str, Any]] = {}
        self._watch: threading.Thread | None = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Its workers are there: they are told, now or later."""
        self._workers = {
            worker.distributed_context.world_rank: (worker.metadata.node_id, worker.actor)
            for worker in worker_group.get_workers()
        }
        self._words.tell(self._news)
        if self._watch is None:
            self._watch = threading.Thread(target=self._await_notice, name="fabric-train-notice", daemon=True)
            self._watch.start()
        elif (wish := self._words.wish()) is not None:
            self._hand_on(wish)

    def before_worker_group_shutdown(self, worker_group: Any) -> None:  # noqa: ARG002
        self._workers = {}

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        """All workers have reported, and Ray has noted the checkpoint, if there was one."""
        said, count = metrics[0] if metrics else {}, self._news.reports + 1
        step = step_of(said, otherwise=self._before + count)
        is_kept = training_report.checkpoint is not None
        if is_kept and self._step_file is not None:
            _write(self._step_file, str(step))
        self._news = News(reports=count, kept=count if is_kept else self._news.kept, step=step, loss=loss_of(said))
        self._words.tell(self._news)

    def _await_notice(self) -> None:
        while (wish := self._words.wish()) is None:
            time.sleep(_LOOK_S)
        self._hand_on(wish)

    def _hand_on(self, wish: Wish) -> None:
        places: dict[str, list[int]] = {}
        for rank, (node, _) in self._workers.items():
            places.setdefault(node, []).append(rank)
        info = PreemptionInfo(deadline_ms=wish.deadline_ms, preempted_node_to_ranks=places)
        for _, actor in self._workers.values():
            actor.mark_preempt.remote(info)


class Holds(TrainContextCallback):  # type: ignore[misc]
    """In a worker: once the notice is there and a report with a checkpoint is kept, no further step is made, which would be lost."""

    def __init__(self, words: Words) -> None:
        self._words = words

    @contextmanager
    def on_report(self) -> Iterator[None]:
        """Around a worker's report."""
        yield
        info = get_train_context().preemption_context.preemption_info
        if info is None:
            return
        end_at = None if info.deadline_ms is None else info.deadline_ms / 1000 + _HELD_S
        left_s = None if end_at is None else max(0.0, end_at - time.time())
        get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED, timeout_s=left_s)
        news = self._words.news()
        if news is None or news.kept != news.reports:
            return
        self._words.hold(news)
        while end_at is None or time.time() < end_at:
            time.sleep(_LOOK_S)


def step_of(metrics: Mapping[str, Any], *, otherwise: int) -> int:
    """The step that a report tells of, by the names that are usual; else how many reports there were."""
    for name in _STEPS:
        value = metrics.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return otherwise


def loss_of(metrics: Mapping[str, Any]) -> float | None:
    return next((float(metrics[name]) for name in _LOSSES if isinstance(metrics.get(name), int | float)), None)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="ascii")
    beside.replace(path)
