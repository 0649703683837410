"""UperNet on frozen SAIL-7B, ADE20K, by windows of 504 pixels every 322; see _base_/upernet.py for the source."""

_base_ = ["_base_/ade20k_504.py", "_base_/upernet.py"]
model = dict(
    data_preprocessor=dict(size=(504, 504)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    test_cfg=dict(mode="slide", crop_size=(504, 504), stride=(322, 322)),
)
