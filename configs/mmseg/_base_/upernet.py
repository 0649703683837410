"""UperNet on four layers of frozen SAIL-7B.

Source: the frozen-backbone "head tuning" of InternVL-6B (arXiv 2312.14238 and its published configuration): layers at
every quarter of the depth without a final norm, a layer norm in the pyramid, width 1536, auxiliary head of the same
width on the second level; AdamW 4e-5, weight decay 0.05 but for norms and biases, 80,000 iterations of 16 crops, in a
line to zero under a warm-up of 1,500.
"""

norm_cfg = dict(type="SyncBN", requires_grad=True)
loss = dict(type="CrossEntropyLoss", use_sigmoid=False)
model = dict(
    type="EncoderDecoder",
    # The backbone normalises; what is beyond the edge of an image gets a middle gray.
    data_preprocessor=dict(type="SegDataPreProcessor", bgr_to_rgb=True, pad_val=116, seg_pad_val=255),
    backbone=dict(type="SailBackbone", model="ByteDance-Seed/SAIL-7B", out_indices=[7, 15, 23, 31], norm=False),
    neck=dict(type="FeaturePyramidNeck", in_channels=[4096] * 4, norm="layer"),
    decode_head=dict(
        type="UPerHead",
        in_channels=[4096] * 4,
        in_index=[0, 1, 2, 3],
        channels=1536,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=1.0, **loss),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=4096,
        in_index=1,
        channels=1536,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=0.4, **loss),
    ),
    train_cfg=dict(),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-5, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=80000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=80000, val_interval=8000)
