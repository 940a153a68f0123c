"""A made-up report with everything in it: 8 subjects, one missing and one out of memory, 8 workloads, forecasts."""

import random
from dataclasses import replace

from nopad.bench.schema import Cell, Noise, Peak, Report, Subject, Workload

GB = 10**9
# name, kind, texts, tokens, padded, longest, source, batch, limit, share of labels that int8 keeps
WORKLOADS = (
    ("sst2-64", "ragged", 64, 1441, 3392, 53, "sst2/test.jsonl", 64, 765.0),
    ("imdb-8", "ragged", 8, 2381, 4096, 512, "imdb/test.jsonl", 8, 738.0),
    ("imdb-32", "ragged", 32, 9549, 16384, 512, "imdb/test.jsonl", 32, 739.0),
    ("1x128", "fixed", 1, 128, 128, 128, "generated", 1, 745.0),
    ("8x128", "fixed", 8, 1024, 1024, 128, "generated", 8, 748.0),
    ("1x512", "fixed", 1, 512, 512, 512, "generated", 1, 725.0),
    ("1x2048", "fixed", 1, 2048, 2048, 2048, "generated", 1, 627.0),
    ("1x8192", "fixed", 1, 8192, 8192, 8192, "generated", 1, 407.0),
)
# real tokens/s on each workload; None: no figure
SPEEDS: dict[str, tuple[float | None, ...]] = {
    "nopad-fp32": (664.0, 655.0, 661.0, 630.0, 676.0, 655.0, 549.0, 338.0),
    "nopad-int8": (1104.0, 1040.0, 1075.0, 985.0, 1090.0, 1061.0, 798.0, 391.0),
    "hf-sdpa": (268.0, 305.0, 213.0, 540.0, 560.0, 553.0, 351.0, 143.0),
    "hf-eager": (251.0, 288.0, 200.0, 512.0, 531.0, 501.0, 262.0, None),
    "hf-fa2": (None,) * 8,
    "optimum": (298.0, 322.0, 274.0, 588.0, 601.0, 597.0, 339.0, None),
    "openvino": (321.0, 350.0, 291.0, 601.0, 633.0, 608.0, None, None),
    "bert-hf-sdpa": (388.0, 401.0, 290.0, 702.0, 733.0, 690.0, None, None),
}
PEAKS = {"nopad-fp32": 1.15, "nopad-int8": 0.71, "hf-sdpa": 1.42, "hf-eager": 1.61, "optimum": 1.55, "openvino": 1.9}


def sample_report() -> Report:
    chance = random.Random(7)
    workloads = tuple(
        Workload(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            texts=texts,
            tokens=tokens,
            padded_tokens=padded,
            longest=longest,
            source=source,
            batch=batch,
            limits={"fp32": limit, "int8": 4 * limit},
        )
        for name, kind, texts, tokens, padded, longest, source, batch, limit in WORKLOADS
    )
    cells = []
    for name, speeds in SPEEDS.items():
        for workload, speed in zip(workloads, speeds, strict=True):
            cells.append(_cell(name, workload, speed, chance))
    return Report(
        command="nopad bench checkpoint/ --reference checkpoint/ --threads 2 --rounds 7 --html report.html",
        created="2026-11-25T09:14:03Z",
        complete=True,
        threads=2,
        reference="hf-sdpa",
        machine={
            "cpu": "Some Processor 8375C @ 2.90 GHz",
            "cores": 2,
            "memory_bytes": 24_696_061_952,
            "gpu": None,
            "os": "Linux 6.8",
            "isa": "avx2 fma",
        },
        versions={"nopad": "0.1.0", "onnxruntime": "1.32.0", "torch": "2.13.0", "transformers": "5.23.0"},
        peaks=(
            Peak(precision="fp32", library="onnxruntime", flops=172e9),
            Peak(precision="int8", library="torch", flops=688e9),
        ),
        noise=Noise(
            probe_seconds=tuple(0.0136 * chance.uniform(0.99, 1.03) for _ in range(56)),
            peak_flops=172e9,
            spread=0.021,
            verdict="a fixed matrix product varied by 2.1% (interquartile range over the median of 56 times)",
        ),
        subjects=_subjects(),
        workloads=workloads,
        cells=tuple(cells),
        forecasts=(
            {
                "gpu": "t4",
                "workload": "imdb-32",
                "precision": "fp16",
                "seconds": 0.142,
                "low": 0.118,
                "high": 0.171,
                "tokens_per_second": 67246.0,
                "bound": "compute",
                "label": "forecast",
            },
            {
                "gpu": "h100",
                "workload": "1x128",
                "precision": "fp16",
                "seconds": 0.00091,
                "low": 0.0006,
                "high": 0.0014,
                "tokens_per_second": 140659.0,
                "bound": "memory",
                "label": "forecast",
            },
        ),
    )


def noisy(report: Report) -> Report:
    """The same, interrupted, from a noisy machine."""
    verdict = "too noisy to conclude: a fixed matrix product varied by 31.0%"
    return replace(report, complete=False, noise=replace(report.noise, conclusive=False, spread=0.31, verdict=verdict))


def _subjects() -> tuple[Subject, ...]:
    fields = (
        ("nopad-fp32", "nopad", "modernbert", "fp32", "onnx-cpu", False, "0.1.0", 25.1, 0.61, 0.32, 0.41, 0.98, 0.60),
        ("nopad-int8", "nopad", "modernbert", "int8", "onnx-cpu", False, "0.1.0", 48.0, 0.61, 0.21, 0.35, 0.49, 0.22),
        ("hf-sdpa", "transformers", "modernbert", "fp32", "sdpa", True, "5.23.0", None, 3.9, 0.9, 0.7, 1.2, 0.60),
        ("hf-eager", "transformers", "modernbert", "fp32", "eager", True, "5.23.0", None, 3.9, 0.9, 0.7, 1.2, 0.60),
        (
            "hf-fa2",
            "transformers",
            "modernbert",
            "bf16",
            "flash_attention_2",
            True,
            "",
            None,
            None,
            None,
            None,
            None,
            None,
        ),
        (
            "optimum",
            "optimum",
            "modernbert",
            "fp32",
            "CPUExecutionProvider",
            True,
            "0.1.0",
            61.0,
            4.8,
            0.8,
            0.5,
            1.1,
            0.6,
        ),
        ("openvino", "openvino", "modernbert", "fp32", "CPU", True, "2026.3", 95.0, 5.1, 2.2, 0.6, 1.4, 0.6),
        ("bert-hf-sdpa", "transformers", "bert", "fp32", "sdpa", True, "5.23.0", None, 3.9, 0.7, 0.5, 1.0, 0.44),
    )
    rows = []
    for name, family, model, precision, engine, padded, version, build, imports, load, cold, loaded, file in fields:
        absent = name == "hf-fa2"
        rows.append(
            Subject(
                name=name,
                family=family,
                model=model,
                precision=precision,
                engine=engine,
                padded=padded,
                threads=2,
                version=version,
                status="missing" if absent else "ok",
                note="flash-attn is not installed, and this machine has no GPU that it runs on" if absent else "",
                build_seconds=build,
                import_seconds=imports,
                load_seconds=load,
                cold_seconds=cold,
                loaded_bytes=None if loaded is None else int(loaded * GB),
                file_bytes=None if file is None else int(file * GB),
            )
        )
    return tuple(rows)


def _cell(subject: str, workload: Workload, speed: float | None, chance: random.Random) -> Cell:
    if speed is None:
        failed = subject == "openvino"
        status = "missing" if subject == "hf-fa2" else "failed" if failed else "out of memory"
        if subject == "bert-hf-sdpa":
            status, note = "not run", f"bert reads 512 tokens at most, this workload has {workload.longest}"
        else:
            note = {"missing": "", "failed": "RuntimeError: Infer Request failed"}.get(status, "")
            note = note or "" if status != "out of memory" else "would need about 26 GB of the machine's 24.7"
        return Cell(subject=subject, workload=workload.name, status=status, note=note)  # type: ignore[arg-type]
    spread = 0.09 if subject == "openvino" else 0.015
    times = tuple(workload.tokens / speed * (1 + abs(chance.gauss(0, spread))) for _ in range(14))
    labelled, own = workload.kind == "ragged", not subject.startswith("bert")
    padded = not subject.startswith("nopad")
    grow = (workload.longest / 8192) ** 2 * (9.0 if "eager" in subject else 0.55 if padded else 0.8)
    int8 = subject == "nopad-int8"
    return Cell(
        subject=subject,
        workload=workload.name,
        status="ok",
        seconds=times,
        rounds=tuple(n // 2 for n in range(14)),
        peak_bytes=int((PEAKS.get(subject, 1.3) + grow + workload.padded_tokens * (padded + 1) * 8e-6) * GB),
        computed_tokens=workload.padded_tokens if padded else -(-workload.tokens // 64) * 64,
        agreement=(0.997 if int8 else 1.0) if own else None,
        logit_difference=(0.041 if int8 else 1.9e-6) if own and subject != "hf-sdpa" else None,
        accuracy=({"nopad-int8": 0.9021, "bert-hf-sdpa": 0.8830}.get(subject, 0.9033)) if labelled else None,
    )
