"""optimum-benchmark doing its work once: run by ``process.py`` in an environment of its own.

    python peer_optimum.py BACKEND MODEL_DIRECTORY TASK ITERATIONS SEQ_LEN REPORT.json

It is used as its documentation says (``Benchmark.launch`` with its process launcher, which starts
the measuring process afresh), with latency tracking alone: memory tracking would slow it down and
widen its latencies. Nothing of it is edited. One name is put back before its ONNX Runtime backend
is imported: optimum 2.1 no longer has ``optimum.pipelines.ORT_SUPPORTED_TASKS``, of which the
backend reads nothing but the names of classes.

Only in the measuring process: the parent does not need the name, and shall not pay for it.
"""

from __future__ import annotations

import sys

if __name__ == "__mp_main__" and sys.argv[1] == "onnxruntime":
    import optimum.pipelines

    if not hasattr(optimum.pipelines, "ORT_SUPPORTED_TASKS"):
        optimum.pipelines.ORT_SUPPORTED_TASKS = {
            task: {"class": (type(name, (), {}),)}
            for task, name in {
                "feature-extraction": "ORTModelForFeatureExtraction",
                "text-classification": "ORTModelForSequenceClassification",
            }.items()
        }


def main() -> None:
    """One benchmark, its report as JSON."""
    backend, model, task, iterations, seq_len, report = sys.argv[1:]
    from optimum_benchmark import (
        Benchmark,
        BenchmarkConfig,
        InferenceConfig,
        ORTConfig,
        ProcessConfig,
        PyTorchConfig,
    )
    from optimum_benchmark.logging_utils import setup_logging

    setup_logging(level="ERROR")
    common = {"model": model, "task": task, "library": "transformers", "device": "cpu"}
    config = (
        ORTConfig(**common, export=False, session_options={"intra_op_num_threads": 1})
        if backend == "onnxruntime"
        else PyTorchConfig(**common, intra_op_num_threads=1)
    )
    done = Benchmark.launch(
        BenchmarkConfig(
            name=backend,
            launcher=ProcessConfig(),
            backend=config,
            scenario=InferenceConfig(
                iterations=int(iterations),
                duration=0,
                latency=True,
                memory=False,
                input_shapes={"batch_size": 1, "sequence_length": int(seq_len)},
            ),
        )
    )
    done.save_json(report)


if __name__ == "__main__":
    main()
