from types import SimpleNamespace

import pytest
from reference import build_model

from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import RunError
from ulskip_cli.inference.engines import runtimes
from ulskip_cli.inference.shallow_view import StageView, shallow_view


def test_copies_that_do_not_fit_into_memory_are_refused_before_they_are_made(monkeypatch):
    model = build_model("llama")
    view = shallow_view(model, (0, 3, 5))
    parameters = sum(one.numel() for part in (model, view) for one in part.parameters())
    stages = [StageView(0, view, (0, 3, 5))]
    for weights, size in ((None, 4.0), ("q4_0", 4.5 / 8)):
        for spare, fits in ((0, True), (-1, False)):
            free = SimpleNamespace(available=int(parameters * size) + 1 + 2 * spare)
            monkeypatch.setattr(runtimes.psutil, "virtual_memory", lambda free=free: free)
            engine = engine_named("llama_cpp").replace(weights=weights)
            if fits:
                assert runtimes.make_library_engine(engine, model, stages)
                continue
            with pytest.raises(RunError, match="out of memory: engine=llama_cpp"):
                runtimes.make_library_engine(engine, model, stages)
