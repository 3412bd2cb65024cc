"""What runs in each process of `bench.py scale`: an engine that answers a table, or one core alone.

    python -m benchmark.scale_side NAME ROWS WORKERS

It prints a JSON object.  Engines read Parquet and write Parquet, as in the recipes of
minibert/scale/README.md.  Each first does a job of some rows, so that it has started and
kernels are loaded, then the one whose seconds are told.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark.workload import CONTEXT, QUESTIONS, pairs
from minibert import BatchAnswerer, QuestionAnswerer
from minibert.reading import BATCH_TOKENS, batches
from minibert.windows import Window

BATCH_ROWS = 250
CORE_ROWS = {160: 400, 720: 160, 2_500: 40, 10_600: 8, 42_600: 2}  # of texts of so many characters
REPEATS = 3  # measurements of each length; the median counts

# ---------------------------------------------------------------- engines


class Metered(BatchAnswerer):
    """Notes after each batch who answered how much of it, and what that process has used."""

    def __init__(self, notes: str, **options: Any) -> None:
        super().__init__(**options)
        self.notes = notes

    def answer(self, questions: list[Any], contexts: list[Any]) -> list[list[Any]]:
        """See BatchAnswerer."""
        before = time.process_time()
        columns = super().answer(questions, contexts)
        if questions:
            note = [len(questions), before, time.process_time(), *memory()]
            with open(os.path.join(self.notes, str(os.getpid())), "a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")
        return columns


def memory() -> tuple[int, int]:
    """Bytes of this process in memory, and those that it shares with nobody; 0 if unknown."""
    kilobytes: dict[str, int] = {}
    try:
        with open("/proc/self/smaps_rollup", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if value.endswith("kB\n"):
                    kilobytes[name] = int(value.split()[0])
    except OSError:
        return 0, 0
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return 1024 * kilobytes["Rss"], 1024 * own


def in_pandas(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """One DataFrame, in this process."""
    import pandas

    answerer(pandas.read_parquet(source)).to_parquet(target)


def in_polars(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """One DataFrame, in this process."""
    import polars

    answerer(polars.read_parquet(source)).write_parquet(target)


def in_pyarrow(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """One Table, in this process."""
    from pyarrow import parquet

    parquet.write_table(answerer(parquet.read_table(source)), target)


def in_datasets(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """Batches in so many processes."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    rows = Dataset.from_parquet(str(source), cache_dir=str(target) + ".cache")
    rows = rows.map(answerer, batched=True, batch_size=BATCH_ROWS, num_proc=workers)
    rows.to_parquet(target)


def in_dask(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """Partitions in threads, one at a time on all cores."""
    import dask.dataframe

    rows = dask.dataframe.read_parquet(source)
    rows = rows.repartition(npartitions=max(1, len(rows) // BATCH_ROWS))
    rows.map_partitions(answerer, meta=answerer(rows.head(0))).to_parquet(target)


def in_spark(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """Batches of pyarrow in so many workers of one machine."""
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH_ROWS),
        "spark.sql.warehouse.dir": str(target) + ".spark",
    }
    builder = SparkSession.builder.master(f"local[{workers}]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    rows = builder.getOrCreate().read.parquet(str(source)).repartition(4 * workers)
    columns = [f"`{field.name}` {field.dataType.simpleString()}" for field in rows.schema]
    schema = ", ".join([*columns, answerer.spark_columns])
    rows.mapInArrow(lambda batches: map(answerer, batches), schema).write.parquet(str(target))


def in_ray(source: Path, target: Path, answerer: Metered, workers: int) -> None:
    """Batches of pyarrow in so many actors, beside which two cores read and write."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=workers + 2, include_dashboard=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(str(source)).repartition(4 * workers)
    rows.map_batches(
        Metered,
        fn_constructor_kwargs={"notes": answerer.notes, "num_threads": 1},
        batch_format="pyarrow",
        batch_size=BATCH_ROWS,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    ).write_parquet(str(target))


Job = Callable[[Path, Path, Metered, int], None]
JOBS: dict[str, Job] = {
    "pandas": in_pandas,
    "polars": in_polars,
    "pyarrow": in_pyarrow,
    "datasets": in_datasets,
    "dask": in_dask,
    "spark": in_spark,
    "ray": in_ray,
}


def measure_engine(name: str, count: int, workers: int) -> dict[str, Any]:
    """Let an engine answer a table.

    Args:
        name: of the engine.
        count: rows of the table.
        workers: processes with a thread each; 0 for this one, with a thread a core.

    Returns:
        `seconds` of the whole job; of those who worked, each a list: `rows`, `cpu` (seconds of
        processor time), `rss` and `own` (bytes); `answers`, a digest of what was answered.
    """
    made = pairs(count)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for job, rows in (("first", made[: 4 * max(1, workers)]), ("table", made)):
            notes = folder / f"{job}.notes"
            notes.mkdir()
            answerer = Metered(str(notes), num_threads=1 if workers else None)
            source, target = folder / f"{job}.parquet", folder / f"{job}.answers"
            write_rows(source, rows)
            begin = time.perf_counter()
            JOBS[name](source, target, answerer, workers)
            seconds = time.perf_counter() - begin
        each = [
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in notes.iterdir()
        ]
        return {
            "seconds": seconds,
            "rows": [sum(note[0] for note in worker) for worker in each],
            "cpu": [worker[-1][2] - min(note[1] for note in worker) for worker in each],
            "rss": [max(note[3] for note in worker) for worker in each],
            "own": [max(note[4] for note in worker) for worker in each],
            "answers": digest(target),
        }


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write a table of questions and texts."""
    import pyarrow
    from pyarrow import parquet

    questions, contexts = zip(*rows, strict=True)
    columns = {"id": range(len(rows)), "question": questions, "context": contexts}
    parquet.write_table(pyarrow.table({k: list(v) for k, v in columns.items()}), path)


def digest(path: Path) -> str:
    """What was answered to which row, whatever the order of rows."""
    from pyarrow import parquet

    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    rows = []
    for file in files:
        table = parquet.ParquetFile(file).read(["id", "answer_text", "answer_start"])
        rows += [tuple(row.values()) for row in table.to_pylist()]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


# ---------------------------------------------------------------- one core


def measure_core(dtype: str) -> list[dict[str, float]]:
    """What one thread does in a second of processor time, for texts of several lengths.

    Returns:
        For each length: `characters` of a text; `tokens` and `windows` of a row; the seconds of a
        row in all, `whole`, and of these those of the `tokeniser` and of the `encoder`.
    """
    qa = QuestionAnswerer(dtype=dtype, num_threads=1)
    return [measure_length(qa, characters, count) for characters, count in CORE_ROWS.items()]


def measure_length(qa: QuestionAnswerer, characters: int, count: int) -> dict[str, float]:
    """See `measure_core`."""
    text = (CONTEXT + " ") * (1 + characters // len(CONTEXT))
    numbers = iter(range(10**9))  # no text is the same as another, which a tokenizer would know

    def fresh() -> Iterator[tuple[str, str]]:
        for number, _ in zip(numbers, range(count), strict=False):
            yield QUESTIONS[number % 2], f"{number} {text}"[:characters]

    examples: list[list[Window]] = []  # the windows of each row

    def tokenise() -> None:
        examples[:] = [qa.model.windows(question, [context]) for question, context in fresh()]

    def encode() -> None:
        for batch in batches([window for each in examples for window in each], BATCH_TOKENS):
            qa.model.logits(batch)

    spent = {
        name: median_seconds(work) / count
        for name, work in (
            ("whole", lambda: list(qa.answer_many(fresh()))),
            ("tokeniser", tokenise),
            ("encoder", encode),
        )
    }
    windows = [window for each in examples for window in each]
    shape = {"tokens": sum(map(len, windows)) / count, "windows": len(windows) / count}
    return {"characters": characters, **shape, **spent}


def median_seconds(work: Callable[[], object]) -> float:
    """The median of some measurements: seconds of processor time, of all threads."""
    taken = []
    for _ in range(REPEATS):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return sorted(taken)[REPEATS // 2]


def main(name: str, count: str, workers: str) -> None:
    """Measure an engine, or a core in the dtype that is named."""
    found: Any = (
        measure_engine(name, int(count), int(workers)) if name in JOBS else measure_core(name)
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
