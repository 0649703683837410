"""Makes the common tests of transformers importable: they come with its source distribution, see `make common`.

The distribution leaves out the sub-folders that three of its names come from; they are replaced by empty ones. One of
them holds the tests of `generate`. Where TRANSFORMERS_SOURCE is a folder that has it, such as a clone, they run too.
"""

import os
import sys
import types
from pathlib import Path

from transformers.models.auto import modeling_auto

SOURCE = Path(os.environ.get("TRANSFORMERS_SOURCE", ".venv/transformers-source")).resolve()


def _stand_in(module_name: str, name_in_it: str, value: object) -> None:
    package, _, _ = module_name.rpartition(".")
    for name in (package, module_name):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__path__ = []
    setattr(sys.modules[module_name], name_in_it, value)


sys.path.insert(0, str(SOURCE))
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for helpers
tests = types.ModuleType("tests")
tests.__path__ = [str(SOURCE / "tests")]
sys.modules["tests"] = tests
# Models inside transformers are listed by name; the tests decide by these lists what to expect of a class.
for names, model_type, model in (
    (modeling_auto.MODEL_MAPPING_NAMES, "sail", "SailModel"),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "sail", "SailForCausalLM"),
    (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "sail", "SailForCausalLM"),
    (modeling_auto.MODEL_MAPPING_NAMES, "pixel_sail", "PixelSailModel"),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "pixel_sail", "PixelSailForCausalLM"),
    (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "pixel_sail", "PixelSailForCausalLM"),
    (modeling_auto.MODEL_MAPPING_NAMES, "sailvit", "SailViTModel"),
    (modeling_auto.MODEL_MAPPING_NAMES, "internvit", "InternViTModel"),
    (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "sail_vl", "SailVLForConditionalGeneration"),
):
    names[model_type] = model

# Files of the Hub that some tests of processing ask for by address; nothing is downloaded here.
sys.modules["fetch_hub_objects_for_ci"] = types.ModuleType("fetch_hub_objects_for_ci")
sys.modules["fetch_hub_objects_for_ci"].url_to_local_path = lambda address: address
for name in ("ExportTesterMixin", "ExportGenerateTesterMixin"):
    _stand_in("tests.exporters.test_export", name, type(name, (), {}))
if not (SOURCE / "tests/generation/test_utils.py").is_file():
    _stand_in("tests.generation.test_utils", "GenerationTesterMixin", type("GenerationTesterMixin", (), {}))
_stand_in("tests.utils.test_configuration_utils", "config_common_kwargs", {})
