"""One run of a plan on one device, from the images to the finished folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sail_encoder.extraction.plan import Plan
from sail_encoder.extraction.progress import Progress, describe_machine
from sail_encoder.io.errors import require_positive
from sail_encoder.io.signals import Interrupt
from sail_encoder.store.index import Totals
from sail_encoder.store.shares import WHOLE, Share
from sail_encoder.store.store import FeatureStore

if TYPE_CHECKING:
    from sail_encoder.backbones.base import VisionBackbone
    from sail_encoder.extraction.pipeline import Pipeline


@dataclass(frozen=True)
class Resources:
    """Resources that a run may take of the machine; neither changes what is stored.

    Attributes:
        token_budget: Patches in one forward pass; `auto` is what memory allows.
        readers: Threads that read images; `auto` is one for each core, 16 at most.

    Raises:
        UserError: If a number is not positive.
    """

    token_budget: int | Literal["auto"] = "auto"
    readers: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value != "auto":
                require_positive(name, value)


@dataclass(frozen=True)
class RunResult:
    """End of a run.

    Attributes:
        progress: What this run has done.
        status: 0, or 130 or 143 where a signal has stopped it.
        totals: How far the images of the share have come; None where a signal has stopped it.
    """

    progress: Progress
    status: int
    totals: Totals | None = None


def run_plan(
    backbone: "VisionBackbone",
    plan: Plan,
    folder: Path,
    part: Share = WHOLE,
    resources: Resources = Resources(),
) -> RunResult:
    """Extracts what a folder does not have yet.

    Raises:
        StoreError: If the folder holds a run with other settings, another process writes it, or its disk is full.
    """
    features = replace(plan.features, weights=backbone.fingerprint(plan.features.depth - 1))
    plan = replace(plan, features=features)
    with FeatureStore(folder, plan.settings, features.pool != "none", features.store_dtype, part) as store:
        stretches = store.missing(part.of(plan.listing.images))
        progress = Progress(sum(map(len, stretches)), f"{backbone.device}")
        pipeline = _build_pipeline(backbone, store, plan, resources, progress)
        with progress, Interrupt(pipeline.stop.set) as interrupt:
            pipeline.run(stretches)
        totals = None
        if not interrupt.status:
            run = {"shard": str(part), "device": str(backbone.device), "token_budget": pipeline.loader.token_budget}
            report = {"model": plan.spec.name, **run, **progress.report(), **describe_machine(backbone.device)}
            totals = store.finish(plan.listing.images, report)
    return RunResult(progress, interrupt.status, totals)


def _build_pipeline(
    backbone: "VisionBackbone", store: FeatureStore, plan: Plan, resources: Resources, progress: Progress
) -> "Pipeline":
    from sail_encoder.extraction.pipeline import Pipeline

    budget, readers = (None if value == "auto" else value for value in (resources.token_budget, resources.readers))
    return Pipeline(backbone, store, plan.features, progress.add, budget, readers)
