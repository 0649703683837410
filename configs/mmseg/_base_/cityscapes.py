"""Cityscapes (19 classes) at full size, in crops of 37 x 73 patches of 14 pixels."""

_base_ = ["runtime.py"]
crop_size = (518, 1022)
data_root = "data/cityscapes/"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(type="CityscapesDataset", data_root=data_root)
train_prefix = dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train")
val_prefix = dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val")
train_dataloader = dict(dataset=dict(**dataset, data_prefix=train_prefix, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, data_prefix=val_prefix, pipeline=test_pipeline))
test_dataloader = val_dataloader
