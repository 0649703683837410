"""One run of a plan on one device, from the images to the finished folder."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sail_encoder.extraction.plan import Plan
from sail_encoder.extraction.progress import Progress, describe_machine
from sail_encoder.io.signals import Interrupt
from sail_encoder.store.shares import WHOLE, Share
from sail_encoder.store.store import FeatureStore

if TYPE_CHECKING:
    from sail_encoder.backbones.base import VisionBackbone


def run_plan(
    backbone: "VisionBackbone",
    plan: Plan,
    folder: Path,
    part: Share = WHOLE,
    token_budget: int | None = None,
    readers: int | None = None,
) -> tuple[int, Progress, dict[str, int] | None]:
    """Extracts what a folder does not have yet.

    Args:
        backbone: The backbone.
        plan: What is asked of which images.
        folder: Where the features go.
        part: Which of the images.
        token_budget: Patches in one forward pass; by default what memory allows.
        readers: Threads that read images; by default one for each core, 16 at most.

    Returns:
        0, or 130 or 143 where a signal has stopped it; what this run has done; and how far the images of the share have
        come, None where a signal has stopped it.

    Raises:
        StoreError: If the folder holds a run with other settings, another process writes it, or its disk is full.
    """
    from sail_encoder.extraction.pipeline import Pipeline

    features = replace(plan.features, weights=backbone.fingerprint(plan.features.depth - 1))
    plan = replace(plan, features=features)
    with FeatureStore(folder, plan.settings, features.pool != "none", features.store_dtype, part) as store:
        stretches = store.missing(part.of(plan.listing.images))
        progress = Progress(sum(map(len, stretches)), f"{backbone.device}")
        pipeline = Pipeline(backbone, store, features, progress.add, token_budget, readers)
        with progress, Interrupt(pipeline.stop.set) as interrupt:
            pipeline.run(stretches)
        totals = None
        if not interrupt.status:
            run = {"shard": str(part), "device": str(backbone.device), "token_budget": pipeline.loader.token_budget}
            report = {"model": plan.spec.name, **run, **progress.report(), **describe_machine(backbone.device)}
            totals = store.finish(plan.listing.images, report)
    return interrupt.status, progress, totals
