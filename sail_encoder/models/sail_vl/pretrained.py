"""Loading that is strict: transformers reports missing and unexpected tensors, and goes on; here they are errors."""

from typing import Any

from transformers import PreTrainedModel

from sail_encoder.io.errors import CheckpointError
from sail_encoder.io.quantised import refuse_quantised_tensors
from sail_encoder.io.weights import require_finite
from sail_encoder.models.sail_vl.published import hub_name


class PublishedPreTrainedModel(PreTrainedModel):
    """Model with the published names of modules, so that `from_pretrained` reads published folders as they are."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint in the native or the published format; options as in transformers.

        Raises:
            CheckpointError: If tensors are missing or unexpected, or hold NaN.
        """
        name = pretrained_model_name_or_path and hub_name(str(pretrained_model_name_or_path))
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        require_exact_keys(info["missing_keys"], info["unexpected_keys"], str(name))
        require_finite(model.state_dict(), str(name))
        if model.can_generate():
            complete_generation_config(model)
        return (model, info) if output_loading_info else model


def complete_generation_config(model: PreTrainedModel) -> None:
    """Sets the special tokens that generation_config.json leaves out, as published ones do, as config.json has them.

    Without them an answer would not end.
    """
    text = model.config.get_text_config(decoder=True)
    for name in ("eos_token_id", "pad_token_id"):
        if getattr(model.generation_config, name) is None:
            setattr(model.generation_config, name, getattr(text, name))


def require_exact_keys(missing: Any, unexpected: Any, where: str) -> None:
    """Makes sure that a checkpoint holds the tensors that a model has and no others.

    Raises:
        CheckpointError: If it does not; it names the first of them.
    """
    refuse_quantised_tensors(unexpected, where)
    for keys, problem in ((missing, "lacks {} tensors"), (unexpected, "has {} unknown tensors")):
        if keys:
            raise CheckpointError(
                f"{where} {problem.format(len(keys))}, first {min(keys)}, by what its config.json says; "
                "get the original files"
            )
