"""The cases that the shared properties are proven for: an objective on an encoder, tiny.

A new objective or encoder is one line here; `tests/README.md` says what that proves and what it may cost.
"""

from __future__ import annotations

VIT = ["encoder.hidden_size=16", "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2"]
CONVNEXT = ["encoder.hidden_sizes=[8, 16]", "encoder.depths=[1, 1]"]
GAN = ["gan_digits", *CONVNEXT, "objective.generator_width=8"]
MAE = ["mae_digits", *VIT, "objective.decoder_hidden_size=16", "objective.decoder_num_hidden_layers=1",
       "objective.decoder_num_attention_heads=2"]  # fmt: skip
CLM = ["clm_sotu", "encoder.n_embd=16", "encoder.n_head=2", "encoder.max_length=64"]
DIGITS = "image_size: 28, num_channels: 1, image_mean: [0.1307], image_std: [0.3081]"
PATCHES = f"{DIGITS}, patch_size: 7, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2"
TAUGHT = [
    "attribute_digits",
    "objective={name: attribute, attributes: {digit: {field: label, classes: [0, 1, 2, 3, 4, 5, 6,"
    " 7, 8, 9]}}}",
]
"""No image is looked at before the first step."""
PROJECTOR = ["objective.projection_sizes=[16, 8]"]
DINO = ["dino_digits", *VIT, "objective.prototypes=16", "objective.head_hidden_size=16",
        "objective.head_bottleneck_size=8", "objective.freeze_last_layer_ratio=0.2",
        "objective.warmup_teacher_temperature=0.07", "optimizer.lr=3e-4"]  # fmt: skip
IJEPA = ["ijepa_digits", *VIT, "encoder.patch_size=7", "objective.context_patches=4",
         "objective.target_scale=[0.2, 0.4]",
         "objective.predictor_hidden_size=16", "objective.predictor_num_hidden_layers=1",
         "objective.predictor_num_attention_heads=2",
         "optimizer.weight_decay_end=0.4"]  # fmt: skip
HARD = ["mae_digits", *VIT, "optimizer.lr=0.01"]
CASES: dict[str, list[str]] = {
    "mae": MAE,
    "simmim": ["simmim_digits", "encoder={name: vit, image_size: 28, num_channels: 1, patch_size: 4, hidden_size: 16, "
               "num_hidden_layers: 2, num_attention_heads: 2, image_mean: [0.5], image_std: [0.5]}"],
    "simmim_cnn": ["simmim_digits", *CONVNEXT, "encoder.patch_size=2"],
    "mlm": ["mlm_sotu", *VIT, "encoder.max_length=64"],
    "electra": ["electra_sotu", *VIT, "encoder.embedding_size=8", "encoder.max_length=64"],
    "clm": CLM,
    "own_head": [*CLM, "objective.tie_embeddings=false"],
    "gan": [*GAN, "objective.r1_every=4"],
    "attribute": ["attribute_digits", *VIT],
    "attribute_words": ["attribute_sotu", *VIT, "encoder.max_length=64", "objective={name: attribute, attributes: {"
                        "party: {field: json.party}, length: {derive: sentence_length, kind: number}, "
                        "shape: {derive: word_shape}}}"],
    "autoencoder": ["autoencoder_digits", *CONVNEXT, "objective.latent_size=8", "objective.decoder_width=8"],
    "autoencoder_mlp": ["autoencoder_mlp_digits", "encoder.hidden_sizes=[32, 16]", "objective.latent_size=8",
                        "objective.decoder_width=16"],
    "dinov2": [*MAE, f"encoder={{name: dinov2_with_registers, {PATCHES}, position_size: 56}}"],
    "dinov3": [*MAE, f"encoder={{name: dinov3_vit, {PATCHES}}}"],
    "swin": [*TAUGHT, f"encoder={{name: swin, {DIGITS}, patch_size: 7, embed_dim: 8, depths: [2, 1],"
             " num_heads: [1, 2], window_size: 2}"],
    "resnet": [*TAUGHT, f"encoder={{name: resnet, {DIGITS}, embedding_size: 8, hidden_sizes: [8, 16],"
               " depths: [1, 1], layer_type: basic}"],
    "vae": ["vae_digits", *CONVNEXT, "objective.latent_size=8", "objective.decoder_width=8"],
    "vqvae": ["vqvae_digits", "encoder.hidden_sizes=[16]", "encoder.depths=[1]", "objective.codes=16",
              "objective.code_size=8", "objective.decoder_width=8", "objective.decoder_residual_blocks=1"],
    "vqvae_gradient": ["vqvae_digits", "encoder.hidden_sizes=[16]", "encoder.depths=[1]", "objective.codes=16",
                       "objective.code_size=8", "objective.decoder_width=8", "objective.codebook=gradient"],
    "bigan": ["bigan_digits", *CONVNEXT, "objective.latent_size=8", "objective.generator_width=8",
              "objective.discriminator_width=8", "objective.hidden_sizes=[16]", "objective.r1_every=4"],
    "context_encoder": ["context_encoder_digits", *CONVNEXT, "objective.bottleneck_size=16", "objective.width=8"],
    "mae_on_device": [*MAE, "augment.on=device"],
    "simclr": ["simclr_digits", *VIT, *PROJECTOR],
    "vicreg": ["vicreg_digits", *VIT, "objective.expander_sizes=[16, 16]",
               # Adam makes steps of rounding errors where batch norm takes every gradient away (biases before it).
               "optimizer.eps=1e-3"],
    "dino": DINO,
    "dino_sinkhorn": [*DINO, "objective.balance=sinkhorn"],
    "ijepa": IJEPA,
    "growing": [*MAE, "train.batch_size_warmup=[[4, 2], [8, 3]]"],
    "hard": [*HARD, "objective={name: 'tests.distributed.hard_objective:Hard'}"],
    "gan_without_r1": [*GAN, "objective.r1_gamma=0"],
    "hard_without_penalty": [*HARD, "objective={name: 'tests.distributed.hard_objective:Hard', penalty: false}"],
}  # fmt: skip
"""By name: a recipe and what makes it tiny."""
LEARNERS = ("mae", "simmim", "simmim_cnn", "mlm", "electra", "clm", "gan", "attribute", "attribute_words",
            "autoencoder", "autoencoder_mlp", "dinov2", "dinov3", "swin", "resnet", "vae", "vqvae", "vqvae_gradient",
            "bigan", "context_encoder", "simclr", "vicreg", "dino", "ijepa")  # fmt: skip
"""What a user trains: every objective, and every kind of encoder."""
WITHOUT_PENALTY = {"gan": "gan_without_r1", "hard": "hard_without_penalty"}
"""The same without the phases that differentiate twice, which ZeRO-3 and 16 bits under DeepSpeed refuse."""
COUPLED = ("resnet", "simclr", "vicreg", "dino_sinkhorn")
"""What a sample gives depends on the others of its micro-batch, so only the same micro-batches give the same."""
