"""`SailVLForConditionalGeneration` in transformers' ways: generation, caches, saving, training."""

import copy

import pytest
import torch
from sail_vl_golden import golden_set, save_activations
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, pipeline

from sail_encoder.io.errors import UserError
from sail_encoder.models.cache_name import CACHE
from sail_encoder.models.sail_vl.configuration_sail_vl import SailVLConfig
from sail_encoder.models.sail_vl.modeling_sail_vl import (
    SailVLForConditionalGeneration,
    SailVLVisionModel,
    pixel_shuffle,
)

NEW = 8


def inputs_of(golden, case=0):
    recorded = golden.tensors(case)
    tiles = [recorded["tiles"]] if "tiles" in recorded else [golden.tensors(0)["tiles"]]
    tiles += [recorded["tiles_image1"]] if "tiles_image1" in recorded else []
    ids = recorded["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.cat(tiles)}


@pytest.fixture
def small():
    """SAIL-VL2 in small, which learns."""
    return golden_set("sail_vl2").load()


def test_two_orders_of_gathered_patches():
    patches = torch.arange(24).reshape(1, 24, 1)  # 4 rows of 6
    v2 = pixel_shuffle(patches, (4, 6), 2)
    assert v2[0, :, 0].tolist() == [0, 2, 4, 12, 14, 16]
    assert v2[0, 1].tolist() == [2, 3, 8, 9]
    assert pixel_shuffle(patches, (4, 6), 2, "v1")[0, :, 0].tolist() == [0, 12, 2, 14, 4, 16]
    with pytest.raises(UserError, match="a grid of 3x8 patches cannot be gathered by 2x2"):
        pixel_shuffle(patches, (3, 8), 2)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_answers_do_not_depend_on_the_cache(options, golden_chat, chat_model):
    inputs = inputs_of(golden_chat)
    expected = chat_model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    given = chat_model.generate(**inputs, max_new_tokens=NEW, do_sample=False, disable_compile=True, **options)
    assert torch.equal(given, expected)


def test_images_are_encoded_once(golden_chat, chat_model, monkeypatch):
    calls = []
    encode = SailVLForConditionalGeneration.get_image_features

    def counted(self, pixel_values, **kwargs):
        calls.append(len(pixel_values))
        return encode(self, pixel_values, **kwargs)

    inputs = inputs_of(golden_chat)
    expected = chat_model.generate(**inputs, max_new_tokens=NEW)
    pixels = inputs.pop("pixel_values")
    monkeypatch.setattr(SailVLForConditionalGeneration, "get_image_features", counted)
    features = chat_model.get_image_features(pixels, return_dict=True)
    assert_close(
        chat_model(**inputs, mm_encoder_outputs={"image": features}).logits,
        chat_model(**inputs, pixel_values=pixels).logits,
    )
    embeds = chat_model.embed_prompt(inputs["input_ids"], features.pooler_output)
    embedded = chat_model.generate(**inputs, inputs_embeds=embeds, max_new_tokens=NEW)
    assert torch.equal(embedded, expected)
    assert calls == [len(pixels)] * 2


@pytest.mark.parametrize("options", [{"do_sample": True, "top_k": 1, "num_return_sequences": 3}, {"num_beams": 1}])
def test_prompts_of_several_tiles_are_repeated_as_a_whole(options, golden_chat, chat_model):
    """Several samples repeat a prompt; its tiles follow as a block, not one by one."""
    single = inputs_of(golden_chat)
    longer = {name: torch.cat([single[name], single[name][:, -5:]], dim=1) for name in ("input_ids", "attention_mask")}
    rows = [single, {**longer, "pixel_values": single["pixel_values"].flip(0)}]
    expected = [chat_model.generate(**row, max_new_tokens=NEW, eos_token_id=None)[:, -NEW:] for row in rows]
    padded = {
        name: torch.cat([torch.nn.functional.pad(single[name], (5, 0)), longer[name]])
        for name in ("input_ids", "attention_mask")
    }
    pixels = torch.cat([row["pixel_values"] for row in rows])
    given = chat_model.generate(**padded, pixel_values=pixels, max_new_tokens=NEW, eos_token_id=None, **options)
    times = options.get("num_return_sequences", 1)
    assert torch.equal(given[:, -NEW:], torch.cat(expected).repeat_interleave(times, dim=0))
    assert not torch.equal(*expected)


def test_beams_find_what_is_at_least_as_likely(golden_chat, chat_model):
    inputs = inputs_of(golden_chat)

    def likelihood(sequences):
        logits = chat_model(
            input_ids=sequences, attention_mask=torch.ones_like(sequences), pixel_values=inputs["pixel_values"]
        ).logits
        chosen = logits.log_softmax(-1)[:, :-1].gather(-1, sequences[:, 1:, None])[..., 0]
        return float(chosen[:, inputs["input_ids"].shape[1] - 1 :].sum())

    options = {"max_new_tokens": NEW, "eos_token_id": None}
    greedy, beams = (chat_model.generate(**inputs, **options, num_beams=count) for count in (1, 4))
    assert likelihood(beams) >= likelihood(greedy) - 1e-4


def test_a_conversation_goes_on_from_its_cache(golden_chat, chat_model):
    inputs = inputs_of(golden_chat)
    first = chat_model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    more = torch.tensor([[5, 6, 7]])
    ids = torch.cat([first.sequences, more], dim=1)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    continued = chat_model.generate(**whole, **{CACHE: first[CACHE]}, max_new_tokens=NEW)
    fresh = chat_model.generate(**whole, pixel_values=inputs["pixel_values"], max_new_tokens=NEW)
    assert torch.equal(continued, fresh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("pixel_values"), r"holds 20 <IMG_CONTEXT> tokens, but the images fill 0"),
        (lambda x: x.update(pixel_values=x["pixel_values"][1:]), "holds 20 .* but the images fill 16"),
        (lambda x: x.update(input_ids=x["input_ids"].clamp_max(299)), r"holds 0 <IMG_CONTEXT> tokens, but .* fill 20"),
        (lambda x: x.update(inputs_embeds=torch.zeros(1, 3, 64)), "images go with input_ids"),
        (lambda x: x.pop("input_ids"), "there is no text"),
        (lambda x: x.update(pixel_values=x["pixel_values"][..., :42]), "cannot be gathered by 2x2"),
    ],
)
def test_inputs_that_disagree(change, message, small):
    inputs = inputs_of(golden_set("sail_vl2"))
    change(inputs)
    with pytest.raises(UserError, match=message):
        small(**inputs)


def test_an_image_without_a_known_token(small):
    small.config.image_token_id = None
    with pytest.raises(UserError, match="pass image_token_id="):
        small(**inputs_of(golden_set("sail_vl2")))


def test_logits_of_the_last_positions(golden_chat, chat_model):
    inputs = inputs_of(golden_chat)
    logits = chat_model(**inputs).logits
    assert_close(chat_model(**inputs, logits_to_keep=2).logits, logits[:, -2:])


def test_saved_and_loaded_by_the_auto_classes(golden_chat, chat_model, processor, tmp_path):
    chat_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = inputs_of(golden_chat)
    expected = chat_model.generate(**inputs, max_new_tokens=NEW)
    for auto in (AutoModelForImageTextToText, AutoModel):
        model = auto.from_pretrained(tmp_path)
        assert isinstance(model, SailVLForConditionalGeneration)
        assert torch.equal(model.generate(**inputs, max_new_tokens=NEW), expected)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor)
    messages = [{"role": "user", "content": "<image>\nWhat is this?"}]
    assert again.apply_chat_template(messages) == processor.apply_chat_template(messages)
    image = golden_chat.images(0)[0]
    first, second = (p(image, "<image>", return_tensors="pt") for p in (processor, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pipeline(golden_chat, chat_model, processor):
    answer = pipeline("image-text-to-text", model=chat_model, processor=processor)
    image = golden_chat.images(0)[0]
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is in the image?"}]
    limit = golden_chat.facts["max_num"]
    messages = [{"role": "user", "content": content}]
    given = answer(text=messages, max_new_tokens=16, return_full_text=False, processor_kwargs={"max_tiles": limit})
    case = golden_chat.facts["cases"][0]
    if case["question"] == "What is in the image?":
        assert given[0]["generated_text"].strip() == case["response"]
    assert isinstance(given[0]["generated_text"], str)


def test_tower_and_projector_without_language_model(golden, model):
    vision = SailVLVisionModel.from_pretrained(golden.checkpoint, dtype=torch.float32, **golden.options).eval()
    assert not any(name.startswith("language_model") for name in vision.state_dict())
    tiles = golden.tensors()["tiles"]
    with torch.no_grad():
        assert torch.equal(vision(tiles).pooler_output, model.get_image_features(tiles).pooler_output)


def test_blocks_beyond_the_selected_layer_do_not_run():
    golden = golden_set("sail_vl_internvit")
    model, ran = golden.load(select_layer=-2), []
    for index, block in enumerate(model.vision_model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        model.get_image_features(golden.tensors()["tiles"])
    assert ran == [0, 1]


def test_labels_of_images_never_count(small):
    inputs = inputs_of(golden_set("sail_vl2"))
    labels = inputs["input_ids"].clone()
    with torch.no_grad():
        everything = small(**inputs, labels=labels).loss
        labels[labels == small.config.image_token_id] = -100
        assert_close(small(**inputs, labels=labels).loss, everything)


def test_gradients_reach_all_parts_with_and_without_checkpointing(small):
    inputs = inputs_of(golden_set("sail_vl2"))
    saving = copy.deepcopy(small)
    save_activations(saving)
    for model in (small, saving):
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    for (name, expected), given in zip(small.named_parameters(), saving.parameters(), strict=True):
        assert expected.grad is not None, name
        assert_close(given.grad, expected.grad, rtol=1e-4, atol=1e-6)


def as_samples(inputs, count):
    sample = {name: x[0] if name != "pixel_values" else x for name, x in inputs.items()}
    return [{**sample, "labels": sample["input_ids"]}] * count


def collate(samples):
    stacked = {name: torch.stack([x[name] for x in samples]) for name in samples[0] if name != "pixel_values"}
    return {**stacked, "pixel_values": torch.cat([x["pixel_values"] for x in samples])}


def test_trainer_learns(small, tmp_path):
    samples = as_samples(inputs_of(golden_set("sail_vl2")), 4)
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=4,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(small, arguments, train_dataset=samples, eval_dataset=samples[:2], data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    assert trainer.predict(samples[:2]).predictions.shape == (2, 182, 320)


def test_lora(small):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
    model = peft.get_peft_model(small, config)
    inputs = inputs_of(golden_set("sail_vl2"))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = {name for name, x in model.named_parameters() if x.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("vision_model" in name for name in trained)
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_a_larger_vocabulary(small, tmp_path):
    small.resize_token_embeddings(330)
    small.save_pretrained(tmp_path)
    again = SailVLForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.text_config.vocab_size == 330
    assert again.get_output_embeddings().weight.shape == (330, 64)


def test_parts_that_one_device_holds(golden, model):
    assert {"SailViTBlock", "InternViTBlock"} <= set(model._no_split_modules)
    assert any("Qwen" in name for name in model._no_split_modules)


def test_built_from_a_configuration():
    text = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
    vision = {"model_type": "internvit", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 56}
    config = SailVLConfig(vision_config=vision, text_config=text, tile_size=56, image_token_id=49)
    model = AutoModelForImageTextToText.from_config(config)
    ids = torch.tensor([[1, 49, 49, 49, 49, 2]])
    assert model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56)).logits.shape == (1, 6, 50)
