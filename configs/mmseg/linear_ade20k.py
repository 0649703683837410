"""Linear head on frozen SAIL-7B, ADE20K, by windows of 518 pixels; see _base_/linear.py for the source.

The source has crops and windows of 512 pixels, which patches of 14 do not tile.
"""

_base_ = ["_base_/ade20k.py", "_base_/linear.py"]
model = dict(
    data_preprocessor=dict(size=(518, 518)),
    decode_head=dict(num_classes=150),
    test_cfg=dict(mode="slide", crop_size=(518, 518), stride=(341, 341)),
)
