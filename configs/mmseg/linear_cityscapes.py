"""Linear head on frozen SAIL-7B, Cityscapes, by windows of 518 x 1022 pixels; see _base_/linear.py for the source.

The source's code has ADE20K alone: on Cityscapes its recipe runs at the size of mmsegmentation's settings, 512 x 1024,
brought to whole patches.
"""

_base_ = ["_base_/cityscapes.py", "_base_/linear.py"]
model = dict(
    data_preprocessor=dict(size=(518, 1022)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode="slide", crop_size=(518, 1022), stride=(341, 681)),
)
