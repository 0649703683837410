"""ADE20K (150 classes) at a shorter side of 512, in crops of 37 x 37 patches of 14 pixels."""

_base_ = ["runtime.py"]
crop_size = (518, 518)
data_root = "data/ade/ADEChallengeData2016"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
dataset = dict(type="ADE20KDataset", data_root=data_root)
train_prefix = dict(img_path="images/training", seg_map_path="annotations/training")
val_prefix = dict(img_path="images/validation", seg_map_path="annotations/validation")
train_dataloader = dict(dataset=dict(**dataset, data_prefix=train_prefix, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, data_prefix=val_prefix, pipeline=test_pipeline))
test_dataloader = val_dataloader
