"""A linear head on the last layer of frozen SAIL-7B.

Source: DINOv3's linear segmentation (arXiv 2508.10104 and its published configuration): dropout 0.1, batch norm, 1x1
convolution; AdamW 1e-3, weight decay 1e-3, 40,000 iterations of 16 crops, half a cosine under a warm-up of 1,500.
"""

model = dict(
    type="EncoderDecoder",
    # The backbone normalises; what is beyond the edge of an image gets a middle gray.
    data_preprocessor=dict(type="SegDataPreProcessor", bgr_to_rgb=True, pad_val=116, seg_pad_val=255),
    backbone=dict(type="SailBackbone", model="ByteDance-Seed/SAIL-7B", out_indices=[-1]),
    decode_head=dict(type="NativeHead", kind="linear", in_channels=[4096], head_options=dict(dropout=0.1)),
    train_cfg=dict(),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=40000, T_max=40000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=4000)
