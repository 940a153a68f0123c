"""Where a graph spends its time on this CPU, operator by operator.

    python scripts/profile_cpu.py BUNDLE/model.cpu.onnx --lengths 512 --threads 2
    python scripts/profile_cpu.py BUNDLE/model.cpu.onnx --lengths 600,500,500,448

One micro-batch of sequences of these lengths, through ONNX Runtime's profiler; milliseconds of a run, the median of
several. An `If` is not counted beside the operators of its branch. Prints a Markdown table.
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

from nopad.model.packing import pack
from nopad.runtime.engines.onnx_session import session_options


def profile(graph: Path, lengths: list[int], multiple: int, threads: int, runs: int) -> dict[str, float]:
    """Milliseconds by operator, the median over `runs`, without the first run."""
    draw = np.random.default_rng(0)
    batch = pack([draw.integers(5, 1000, length).tolist() for length in lengths], multiple=multiple)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(ort, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        feeds = {node.name: getattr(batch, node.name) for node in session.get_inputs()}
        for _ in range(runs + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    totals: list[Counter[str]] = [Counter() for _ in starts]
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and operator != "If":
            run = sum(start <= event["ts"] for start in starts) - 1
            totals[run][operator] += event["dur"] / 1000
    rows: dict[str, list[float]] = defaultdict(list)
    for total in totals[1:]:
        total["all"] = sum(total.values())
        for operator in set().union(*totals):
            rows[operator].append(total[operator])
        rows["all"].append(total["all"])
    return {operator: median(times) for operator, times in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="+")
    parser.add_argument("--lengths", default="512", help="tokens of each sequence of the micro-batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    columns = {}
    for graph in arguments.graphs:
        multiple = 1 if ".cpu." in graph.name else 64  # plain graphs take whole blocks
        columns[str(graph)] = profile(graph, lengths, multiple, arguments.threads, arguments.runs)
    operators = set().union(*columns.values())
    print(f"| operator, ms | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for operator in sorted(operators, key=lambda name: -max(column.get(name, 0) for column in columns.values())):
        values = [column.get(operator, 0.0) for column in columns.values()]
        if max(values) >= 0.5:
            print(f"| {operator} | {' | '.join(f'{value:.1f}' for value in values)} |")


if __name__ == "__main__":
    main()
