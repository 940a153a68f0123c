"""ONNX Runtime for GPUs, without one: its sessions run on the CPU and claim the provider that a test sets."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime


class GpuOnnxRuntime(ModuleType):
    """`onnxruntime-gpu` whose sessions run on the CPU. `active`: the providers that sessions claim; `sessions`: the
    arguments that opened them; `stray`: operators that the provider leaves to the CPU.
    """

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, *available: str) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = ModuleSpec("onnxruntime", None)
        self.available = [*available, "CPUExecutionProvider"]
        self.active: list[str] | None = None
        self.stray: tuple[str, ...] = ("Shape",)
        self.sessions: list[tuple[list[tuple[str, dict[str, str]]], dict[str, Any]]] = []
        self.fails_to_open: str | None = None
        self.fails_to_run: str | None = None

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")

    def InferenceSession(self, path: str, settings: Any, providers: Any, **more: Any) -> Any:
        self.sessions.append((list(providers), more))
        if self.fails_to_open is not None:
            raise RuntimeError(self.fails_to_open)
        real = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        active = self.active or [*(name for name, _ in providers), "CPUExecutionProvider"]

        def run(names: Any, feeds: Any) -> Any:
            if self.fails_to_run is not None:
                raise RuntimeError(self.fails_to_run)
            return real.run(names, feeds)

        def assignment() -> list[Any]:
            nodes = [node for group in real.get_provider_graph_assignment_info() for node in group.get_nodes()]
            stray = [node for node in nodes if node.op_type in self.stray]
            groups = ((active[0], [node for node in nodes if node not in stray]), ("CPUExecutionProvider", stray))
            return [SimpleNamespace(ep_name=name, get_nodes=lambda held=held: held) for name, held in groups]

        return SimpleNamespace(
            get_inputs=real.get_inputs,
            get_session_options=real.get_session_options,
            get_providers=lambda: active,
            get_provider_graph_assignment_info=assignment,
            run=run,
        )
