"""Small models of transformers' families that no table of `results/` holds, random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn


class Tuples(nn.Module):
    """A model whose output is a tuple of the first tensors that it returns."""

    def __init__(self, model: nn.Module, outputs: int = 1, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.outputs, self.names = model, outputs, list(names)

    def forward(self, *args: Tensor) -> Any:
        if self.names:
            made = self.model(**dict(zip(self.names, args, strict=True)))
        else:
            made = self.model(*args)
        if isinstance(made, Tensor):
            return made
        values = list(made.values()) if hasattr(made, "values") else list(made)
        tensors = [v for v in values if isinstance(v, Tensor)][: self.outputs]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)


Net = tuple[Callable[[], nn.Module], Sequence[str]]

TEXT: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "num_labels": 5, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT = TEXT | {"use_cache": False, "num_key_value_heads": 2, "head_dim": 8}
VISION = {k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "num_labels")} | {"image_size": 32, "patch_size": 8}  # fmt: skip
STAGES = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "num_labels": 5}
SEQ2SEQ = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "use_cache": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "num_labels": 5,
}  # fmt: skip
SPEECH = {
    "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "conv_dim": (16, 16, 32), "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "num_labels": 5, "num_feat_extract_layers": 3,
}  # fmt: skip

IDS, MASK, IMAGE, WAVE = "ids N L", "ones N L", "float N 3 32 32", "float N T"
TEXTS = ([IDS, MASK], ["input_ids", "attention_mask"])
IMAGES, WAVES = ([IMAGE], ["pixel_values"]), ([WAVE], ["input_values"])
LARGER = (["float N 3 64 64"], ["pixel_values"])
BOTH = ([IDS, "ids N S=9"], ["input_ids", "decoder_input_ids"])

# name: (class, config, its settings, (inputs, their names), outputs)
FAMILIES: dict[str, tuple[str, str, dict[str, Any], tuple[list[str], list[str]], int]] = {
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", TEXT | {"embedding_size": 16}, TEXTS, 1),
    "electra": ("ElectraForTokenClassification", "ElectraConfig", TEXT | {"embedding_size": 16}, TEXTS, 1),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", TEXT, TEXTS, 1),
    "deberta": ("DebertaForSequenceClassification", "DebertaConfig",
        TEXT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, TEXTS, 1),
    "debertav2": ("DebertaV2ForSequenceClassification", "DebertaV2Config",
        TEXT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}, TEXTS, 1),
    "squeezebert": ("SqueezeBertForSequenceClassification", "SqueezeBertConfig",
        TEXT | {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2,
        "intermediate_groups": 2, "output_groups": 2, "post_attention_groups": 1}, TEXTS, 1),
    "mobilebert": ("MobileBertForSequenceClassification", "MobileBertConfig",
        TEXT | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}, TEXTS, 1),
    "camembert": ("CamembertForMaskedLM", "CamembertConfig", TEXT | {"pad_token_id": 1}, TEXTS, 1),
    "ernie": ("ErnieForSequenceClassification", "ErnieConfig", TEXT, TEXTS, 1),
    "nystromformer": ("NystromformerForSequenceClassification", "NystromformerConfig",
        TEXT | {"num_landmarks": 12, "segment_means_seq_len": 12}, (["ids N 12"], ["input_ids"]), 1),
    "fnet": ("FNetForSequenceClassification", "FNetConfig", TEXT, ([IDS], ["input_ids"]), 1),
    "rembert": ("RemBertForSequenceClassification", "RemBertConfig",
        TEXT | {"input_embedding_size": 16, "output_embedding_size": 24}, TEXTS, 1),
    "roformer": ("RoFormerForSequenceClassification", "RoFormerConfig", TEXT | {"embedding_size": 32}, TEXTS, 1),
    "convbert": ("ConvBertForSequenceClassification", "ConvBertConfig", TEXT | {"embedding_size": 16}, TEXTS, 1),
    "megatronbert": ("MegatronBertForSequenceClassification", "MegatronBertConfig", TEXT, TEXTS, 1),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig",
        TEXT | {"local_attention": 8, "global_attn_every_n_layers": 2, "reference_compile": False}, TEXTS, 1),
    "esm": ("EsmForSequenceClassification", "EsmConfig",
        TEXT | {"position_embedding_type": "rotary", "token_dropout": False, "mask_token_id": 4}, TEXTS, 1),
    "xlm": ("XLMForSequenceClassification", "XLMConfig",
        {"vocab_size": 100, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "num_labels": 5}, TEXTS, 1),
    "xlmroberta": ("XLMRobertaForTokenClassification", "XLMRobertaConfig", TEXT | {"pad_token_id": 1}, TEXTS, 1),
    "data2vectext": ("Data2VecTextForSequenceClassification", "Data2VecTextConfig", TEXT | {"pad_token_id": 1}, TEXTS, 1),
    "bigbird": ("BigBirdForSequenceClassification", "BigBirdConfig", TEXT | {"attention_type": "original_full"}, TEXTS, 1),
    "canine": ("CanineForSequenceClassification", "CanineConfig",
        TEXT | {"num_hash_buckets": 64, "downsampling_rate": 4, "local_transformer_stride": 16,
        "upsampling_kernel_size": 4}, (["ids N 32"], ["input_ids"]), 1),
    "layoutlm": ("LayoutLMForTokenClassification", "LayoutLMConfig", TEXT | {"max_2d_position_embeddings": 64},
        ([IDS, "ids1 N L 4"], ["input_ids", "bbox"]), 1),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {"vocab_size": 100, "hidden_size": 32, "num_layers": 2,
        "num_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64, "use_cache": False,
        "attention_types": [[["global", "local"], 1]], "window_size": 8}, TEXTS, 1),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT | {"use_cache": False}, TEXTS, 1),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "rotary_dim": 4, "n_positions": 64, "use_cache": False}, TEXTS, 1),
    "opt": ("OPTForCausalLM", "OPTConfig", TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}, TEXTS, 1),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4,
        "use_cache": False}, TEXTS, 1),
    "falcon": ("FalconForCausalLM", "FalconConfig", TEXT | {"use_cache": False, "multi_query": True}, TEXTS, 1),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "rotary_dim": 4, "n_positions": 64, "use_cache": False}, TEXTS, 1),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4,
        "max_seq_len": 64, "expansion_ratio": 2, "use_cache": False}, TEXTS, 1),
    "phi": ("PhiForCausalLM", "PhiConfig", GPT | {"partial_rotary_factor": 0.5}, TEXTS, 1),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GPT, TEXTS, 1),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GPT, TEXTS, 1),
    "qwen3": ("Qwen3ForSequenceClassification", "Qwen3Config", GPT, TEXTS, 1),
    "qwen2moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", GPT | {"num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}, TEXTS, 1),
    "mistral": ("MistralForSequenceClassification", "MistralConfig", GPT | {"sliding_window": 8}, TEXTS, 1),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GPT | {"num_local_experts": 4}, TEXTS, 1),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GPT, TEXTS, 1),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GPT | {"query_pre_attn_scalar": 8, "sliding_window": 8}, TEXTS, 1),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GPT, TEXTS, 1),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", GPT, TEXTS, 1),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GPT, TEXTS, 1),
    "cohere": ("CohereForCausalLM", "CohereConfig", GPT, TEXTS, 1),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GPT, TEXTS, 1),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
        "context_length": 64, "use_cache": False}, (["ids N 8"], ["input_ids"]), 1),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
        "state_size": 8, "use_cache": False}, (["ids N 6"], ["input_ids"]), 1),
    "xglm": ("XGLMForCausalLM", "XGLMConfig", {"vocab_size": 100, "d_model": 32, "ffn_dim": 64, "num_layers": 2,
        "attention_heads": 4, "max_position_embeddings": 64, "use_cache": False}, TEXTS, 1),
    "biogpt": ("BioGptForSequenceClassification", "BioGptConfig", TEXT | {"use_cache": False}, TEXTS, 1),
    "openaigpt": ("OpenAIGPTForSequenceClassification", "OpenAIGPTConfig", {"vocab_size": 100, "n_embd": 32,
        "n_layer": 2, "n_head": 4, "n_positions": 64, "num_labels": 5, "pad_token_id": 0}, TEXTS, 1),
    "bart": ("BartForSequenceClassification", "BartConfig", SEQ2SEQ | {"eos_token_id": 2}, BOTH, 1),
    "bart_lm": ("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, BOTH, 1),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ, BOTH, 1),
    "marian": ("MarianMTModel", "MarianConfig", SEQ2SEQ, BOTH, 1),
    "m2m100": ("M2M100ForConditionalGeneration", "M2M100Config", SEQ2SEQ, BOTH, 1),
    "t5_both": ("T5ForConditionalGeneration", "T5Config", {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64,
        "num_layers": 2, "num_heads": 4, "use_cache": False, "feed_forward_proj": "gated-gelu"}, BOTH, 1),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", SEQ2SEQ | {"num_mel_bins": 20,
        "max_source_positions": 32, "max_target_positions": 32}, (["float N 20 64", "ids N S=9"],
        ["input_features", "decoder_input_ids"]), 1),
    "whisper_audio": ("WhisperForAudioClassification", "WhisperConfig", SEQ2SEQ | {"num_mel_bins": 20,
        "max_source_positions": 32}, (["float N 20 64"], ["input_features"]), 1),
    "speech2text": ("Speech2TextForConditionalGeneration", "Speech2TextConfig", SEQ2SEQ | {"max_source_positions": 64,
        "max_target_positions": 64, "input_feat_per_channel": 20, "conv_channels": 32},
        (["float N 48 20", "ids N S=9"], ["input_features", "decoder_input_ids"]), 1),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", SPEECH, WAVES, 1),
    "wav2vec2_ctc": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH | {"do_stable_layer_norm": True,
        "feat_extract_norm": "layer"}, WAVES, 1),
    "hubert": ("HubertForCTC", "HubertConfig", SPEECH, WAVES, 1),
    "wavlm": ("WavLMForSequenceClassification", "WavLMConfig", SPEECH, (["float N 4000"], ["input_values"]), 1),
    "unispeech": ("UniSpeechForSequenceClassification", "UniSpeechConfig", SPEECH, WAVES, 1),
    "sew": ("SEWForSequenceClassification", "SEWConfig", SPEECH | {"squeeze_factor": 2}, WAVES, 1),
    "data2vecaudio": ("Data2VecAudioForSequenceClassification", "Data2VecAudioConfig", SPEECH, WAVES, 1),
    "ast": ("ASTForAudioClassification", "ASTConfig", VISION | {"num_mel_bins": 16, "max_length": 32,
        "patch_size": 8, "time_stride": 8, "frequency_stride": 8}, (["float N 32 16"], ["input_values"]), 1),
    "vits": ("VitsModel", "VitsConfig", {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "ffn_dim": 64, "flow_size": 32, "spectrogram_bins": 33, "upsample_initial_channel": 32,
        "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8], "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]], "prior_encoder_num_flows": 2, "posterior_encoder_num_wavenet_layers": 2,
        "prior_encoder_num_wavenet_layers": 2, "duration_predictor_num_flows": 2,
        "use_stochastic_duration_prediction": False}, (["ids40 N L"], ["input_ids"]), 1),
    "univnet": ("UnivNetModel", "UnivNetConfig", {"model_in_channels": 16, "model_hidden_channels": 16,
        "num_mel_bins": 20, "kernel_predictor_hidden_channels": 16}, (["float N T=12 20"], ["input_features"]), 1),
    "encodec": ("EncodecModel", "EncodecConfig", {"num_filters": 8, "hidden_size": 16, "codebook_size": 32,
        "codebook_dim": 16, "num_lstm_layers": 1, "upsampling_ratios": [4, 2], "target_bandwidths": [1.5]},
        (["float N 1 1600"], ["input_values"]), 1),
    "dac": ("DacModel", "DacConfig", {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 32,
        "n_codebooks": 2, "codebook_size": 32, "codebook_dim": 4, "upsampling_ratios": [4, 2]},
        (["float N 1 T=800"], ["input_values"]), 2),
    "fastspeech2": ("FastSpeech2ConformerHifiGan", "FastSpeech2ConformerHifiGanConfig", {"model_in_dim": 20,
        "upsample_initial_channel": 32, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}, (["float N T=12 20"], ["spectrogram"]), 1),
    "beit": ("BeitForImageClassification", "BeitConfig", VISION | {"use_relative_position_bias": True}, IMAGES, 1),
    "swin": ("SwinForImageClassification", "SwinConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 16,
        "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}, IMAGES, 1),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", {"image_size": 32, "patch_size": 2, "embed_dim": 16,
        "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}, IMAGES, 1),
    "swin2sr": ("Swin2SRForImageSuperResolution", "Swin2SRConfig", {"image_size": 16, "embed_dim": 16, "depths": [2],
        "num_heads": [2], "window_size": 4, "upscale": 2, "upsampler": "pixelshuffle"}, IMAGES, 1),
    "pvt": ("PvtForImageClassification", "PvtConfig", STAGES | {"image_size": 64, "num_attention_heads": [1, 2, 2, 4]}, LARGER, 1),
    "mobilevit": ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64,
        "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 32, 64], "num_labels": 5}, LARGER, 1),
    "mobilevit_seg": ("MobileViTForSemanticSegmentation", "MobileViTConfig", {"image_size": 64,
        "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 32, 64], "aspp_out_channels": 16,
        "num_labels": 5}, LARGER, 1),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", VISION | {"use_swiglu_ffn": True}, IMAGES, 1),
    "vitmsn": ("ViTMSNForImageClassification", "ViTMSNConfig", VISION, IMAGES, 1),
    "levit": ("LevitForImageClassification", "LevitConfig", {"image_size": 64, "hidden_sizes": [16, 32, 48],
        "num_attention_heads": [2, 2, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8], "num_labels": 5}, LARGER, 1),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig", STAGES, LARGER, 1),
    "hf_regnet": ("RegNetForImageClassification", "RegNetConfig", STAGES | {"embedding_size": 16, "groups_width": 8}, LARGER, 1),
    "mobilenetv1": ("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25, "num_labels": 5,
        "image_size": 64}, (["float N 3 H W"], ["pixel_values"]), 1),
    "mobilenetv2_seg": ("MobileNetV2ForSemanticSegmentation", "MobileNetV2Config", {"depth_multiplier": 0.35,
        "num_labels": 5}, (["float N 3 H W"], ["pixel_values"]), 1),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, LARGER, 1),
    "cvt": ("CvtForImageClassification", "CvtConfig", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3],
        "depth": [1, 1, 1], "num_labels": 5}, LARGER, 1),
    "focalnet": ("FocalNetForImageClassification", "FocalNetConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 16,
        "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3], "num_labels": 5}, IMAGES, 1),
    "bit": ("BitForImageClassification", "BitConfig", STAGES | {"embedding_size": 32, "num_groups": 8}, LARGER, 1),
    "glpn": ("GLPNForDepthEstimation", "GLPNConfig", {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 16}, LARGER, 1),
    "segformer_cls": ("SegformerForImageClassification", "SegformerConfig", STAGES, LARGER, 1),
    "dpt": ("DPTForDepthEstimation", "DPTConfig", VISION | {"neck_hidden_sizes": [8, 16, 16, 32],
        "backbone_out_indices": [0, 1, 2, 3], "num_hidden_layers": 4, "fusion_hidden_size": 16, "image_size": 64}, LARGER, 1),
    "yolos": ("YolosForObjectDetection", "YolosConfig", VISION | {"image_size": [32, 32], "num_detection_tokens": 7}, IMAGES, 2),
    "detr": ("DetrForObjectDetection", "DetrConfig", "detr", LARGER, 2),
    "conditionaldetr": ("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", "detr", LARGER, 2),
    "owlvit_vision": ("OwlViTVisionModel", "OwlViTVisionConfig", VISION, IMAGES, 1),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION | {"projection_dim": 16}, IMAGES, 1),
    "clip_text": ("CLIPTextModelWithProjection", "CLIPTextConfig", TEXT | {"projection_dim": 16}, TEXTS, 1),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", VISION, IMAGES, 2),
    "siglip_text": ("SiglipTextModel", "SiglipTextConfig", TEXT, (["ids N 64"], ["input_ids"]), 2),
    "blip_vision": ("BlipVisionModel", "BlipVisionConfig", VISION, IMAGES, 2),
    "videomae": ("VideoMAEForVideoClassification", "VideoMAEConfig", VISION | {"num_frames": 4},
        (["float N 4 3 32 32"], ["pixel_values"]), 1),
    "timesformer": ("TimesformerForVideoClassification", "TimesformerConfig", VISION | {"num_frames": 4},
        (["float N 4 3 32 32"], ["pixel_values"]), 1),
    "vivit": ("VivitForVideoClassification", "VivitConfig", VISION | {"num_frames": 4, "tubelet_size": [2, 8, 8]},
        (["float N 4 3 32 32"], ["pixel_values"]), 1),
    "hiera": ("HieraForImageClassification", "HieraConfig", {"image_size": [32, 32], "embed_dim": 16, "depths": [1, 1],
        "num_heads": [1, 2], "patch_stride": [4, 4], "query_stride": [2, 2], "masked_unit_size": [4, 4],
        "num_query_pool": 1, "num_labels": 5}, IMAGES, 1),
    "perceiver": ("PerceiverForSequenceClassification", "PerceiverConfig", {"vocab_size": 100, "d_model": 32,
        "d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 5}, ([IDS], ["inputs"]), 1),
    "patchtst": ("PatchTSTForPrediction", "PatchTSTConfig", {"num_input_channels": 3, "context_length": 32,
        "prediction_length": 8, "patch_length": 4, "patch_stride": 4, "d_model": 32, "num_attention_heads": 4,
        "num_hidden_layers": 2, "ffn_dim": 64, "scaling": None}, (["float N 32 3"], ["past_values"]), 1),
    "patchtsmixer": ("PatchTSMixerForPrediction", "PatchTSMixerConfig", {"num_input_channels": 3, "context_length": 32,
        "prediction_length": 8, "patch_length": 4, "patch_stride": 4, "d_model": 32, "num_layers": 2,
        "scaling": None}, (["float N 32 3"], ["past_values"]), 1),
    "superpoint": ("SuperPointForKeypointDetection", "SuperPointConfig", {"encoder_hidden_sizes": [8, 16, 16, 16],
        "decoder_hidden_size": 32, "keypoint_decoder_dim": 65, "descriptor_decoder_dim": 16},
        (["float 1 3 64 64"], ["pixel_values"]), 2),
    "upernet": ("UperNetForSemanticSegmentation", "UperNetConfig", "upernet", LARGER, 1),
    "moonshine": ("MoonshineForConditionalGeneration", "MoonshineConfig", {"vocab_size": 100, "hidden_size": 32,
        "intermediate_size": 64, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4, "use_cache": False},
        (["float N T=8000", "ids N S=7"], ["input_values", "decoder_input_ids"]), 1),
}  # fmt: skip


def backbone(kind: str) -> dict[str, Any]:
    """Settings with a small ResNet as backbone."""
    import transformers as t

    body = t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
        out_features=["stage4"] if kind == "detr" else ["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    if kind == "upernet":
        return {"backbone_config": body, "hidden_size": 32, "num_labels": 5, "pool_scales": [1, 2],
                "use_auxiliary_head": False, "auxiliary_in_channels": 48}  # fmt: skip
    return {k: v for k, v in SEQ2SEQ.items() if k not in ("vocab_size", "use_cache")} | {
        "backbone_config": body, "use_timm_backbone": False, "num_queries": 10, "backbone": None,
        "use_pretrained_backbone": False}  # fmt: skip


def made(cls: str, config: str, settings: Any, names: list[str], outputs: int) -> nn.Module:
    """Build one model."""
    import transformers as t

    own = backbone(settings) if isinstance(settings, str) else settings
    how = getattr(t, config)(**own)
    model_of = getattr(t, cls)
    how._attn_implementation = "eager"
    how.return_dict = True
    return Tuples(model_of(how), outputs, names)


def transformers_nets() -> dict[str, Net]:
    """All families."""
    import transformers as t

    t.logging.set_verbosity_error()
    return {
        f"hf_{name.removeprefix('hf_')}": (
            partial(made, cls, config, settings, names, outputs),
            specs,
        )
        for name, (cls, config, settings, (specs, names), outputs) in FAMILIES.items()
    }
