"""The architectures of the coverage matrix: every torchvision classifier and every Keras Applications model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Torch:
    """What is measured of a torchvision architecture.

    Attributes:
        middle: the module explained besides the default layer.
        last: the module the default layer is, so that one export serves both; "" where none is known.
        size: side of the input picture.
        options: further arguments of the constructor.
    """

    middle: str
    last: str
    size: int = 64
    options: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Keras:
    """What is measured of a Keras one: its constructor, the layer in the middle, the side of the input picture."""

    build: str
    middle: str
    size: int = 96


def _vit(block: int, size: int = 128) -> Torch:
    """`block` is the last of the first half of the blocks."""
    last = f"encoder.layers.encoder_layer_{2 * block + 1}.ln_1"
    return Torch(f"encoder.layers.encoder_layer_{block}", last, size, (("image_size", size),))


TORCH: dict[str, Torch] = {
    "alexnet": Torch("features.6", "features.11", 96),
    "convnext_base": Torch("features.3", "features"),
    "convnext_large": Torch("features.3", "features"),
    "convnext_small": Torch("features.3", "features"),
    "convnext_tiny": Torch("features.3", "features"),
    "densenet121": Torch("features.denseblock2", ""),
    "densenet161": Torch("features.denseblock2", ""),
    "densenet169": Torch("features.denseblock2", ""),
    "densenet201": Torch("features.denseblock2", ""),
    "efficientnet_b0": Torch("features.4", "features"),
    "efficientnet_b1": Torch("features.4", "features"),
    "efficientnet_b2": Torch("features.5", "features"),
    "efficientnet_b3": Torch("features.4", "features"),
    "efficientnet_b4": Torch("features.5", "features"),
    "efficientnet_b5": Torch("features.4", "features"),
    "efficientnet_b6": Torch("features.5", "features"),
    "efficientnet_b7": Torch("features.4", "features"),
    "efficientnet_v2_l": Torch("features.5", "features"),
    "efficientnet_v2_m": Torch("features.5", "features"),
    "efficientnet_v2_s": Torch("features.4", "features"),
    "googlenet": Torch("inception4b", "inception5b", 64, (("aux_logits", False), ("init_weights", False))),
    "inception_v3": Torch("Mixed_6c", "Mixed_7c", 107, (("init_weights", False),)),
    "maxvit_t": Torch("blocks.1", "blocks.3", 224),
    "mnasnet0_5": Torch("layers.10", "layers"),
    "mnasnet0_75": Torch("layers.10", "layers"),
    "mnasnet1_0": Torch("layers.9", "layers"),
    "mnasnet1_3": Torch("layers.10", "layers"),
    "mobilenet_v2": Torch("features.10", "features"),
    "mobilenet_v3_large": Torch("features.9", "features"),
    "mobilenet_v3_small": Torch("features.6", "features"),
    "regnet_x_1_6gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_x_3_2gf": Torch("trunk_output.block3", "trunk_output"),
    "regnet_x_8gf": Torch("trunk_output.block3", "trunk_output"),
    "regnet_x_16gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_x_32gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_x_400mf": Torch("trunk_output.block3", "trunk_output"),
    "regnet_x_800mf": Torch("trunk_output.block3", "trunk_output"),
    "regnet_y_1_6gf": Torch("trunk_output.block3.block3-4", "trunk_output"),
    "regnet_y_3_2gf": Torch("trunk_output.block3", "trunk_output"),
    "regnet_y_8gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_y_16gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_y_32gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_y_128gf": Torch("trunk_output.block2", "trunk_output"),
    "regnet_y_400mf": Torch("trunk_output.block3", "trunk_output"),
    "regnet_y_800mf": Torch("trunk_output.block3", "trunk_output"),
    "resnet18": Torch("layer2", "layer4"),
    "resnet34": Torch("layer3.2.bn1", "layer4"),
    "resnet50": Torch("layer3", "layer4"),
    "resnet101": Torch("layer3.10", "layer4"),
    "resnet152": Torch("layer3.20", "layer4"),
    "resnext50_32x4d": Torch("layer2", "layer4"),
    "resnext101_32x8d": Torch("layer2", "layer4"),
    "resnext101_64x4d": Torch("layer2", "layer4"),
    "shufflenet_v2_x0_5": Torch("stage3", "conv5"),
    "shufflenet_v2_x1_0": Torch("stage2", "conv5"),
    "shufflenet_v2_x1_5": Torch("stage3", "conv5"),
    "shufflenet_v2_x2_0": Torch("stage3", "conv5"),
    "squeezenet1_0": Torch("features.7", "classifier.2", 96),
    "squeezenet1_1": Torch("features.6", "classifier.2", 96),
    "swin_b": Torch("features.3", "norm"),
    "swin_s": Torch("features.3", "norm"),
    "swin_t": Torch("features.3", "norm"),
    "swin_v2_b": Torch("features.3", "norm"),
    "swin_v2_s": Torch("features.3", "norm"),
    "swin_v2_t": Torch("features.3", "norm"),
    "vgg11": Torch("features.10", "features.19"),
    "vgg11_bn": Torch("features.13", "features.27"),
    "vgg13": Torch("features.11", "features.23"),
    "vgg13_bn": Torch("features.16", "features.33"),
    "vgg16": Torch("features.16", "features.29"),
    "vgg16_bn": Torch("features.22", "features.42"),
    "vgg19": Torch("features.17", "features.35"),
    "vgg19_bn": Torch("features.25", "features.51"),
    "vit_b_16": _vit(5),
    "vit_b_32": _vit(5),
    "vit_h_14": _vit(15, 112),
    "vit_l_16": _vit(11),
    "vit_l_32": _vit(11),
    "wide_resnet50_2": Torch("layer3", "layer4"),
    "wide_resnet101_2": Torch("layer3", "layer4"),
}

KERAS: dict[str, Keras] = {
    "convnextbase": Keras("ConvNeXtBase", "convnext_base_stage_1_block_1_identity"),
    "convnextlarge": Keras("ConvNeXtLarge", "convnext_large_stage_1_block_1_identity"),
    "convnextsmall": Keras("ConvNeXtSmall", "convnext_small_stage_1_block_1_identity"),
    "convnexttiny": Keras("ConvNeXtTiny", "convnext_tiny_stage_1_block_1_identity"),
    "convnextxlarge": Keras("ConvNeXtXLarge", "convnext_xlarge_stage_1_block_1_identity"),
    "densenet121": Keras("DenseNet121", "conv4_block6_concat"),
    "densenet169": Keras("DenseNet169", "conv4_block6_concat"),
    "densenet201": Keras("DenseNet201", "conv4_block6_concat"),
    "efficientnetb0": Keras("EfficientNetB0", "block4a_project_bn"),
    "efficientnetb1": Keras("EfficientNetB1", "block4a_project_bn"),
    "efficientnetb2": Keras("EfficientNetB2", "block4a_project_bn"),
    "efficientnetb3": Keras("EfficientNetB3", "block4a_project_bn"),
    "efficientnetb4": Keras("EfficientNetB4", "block4a_project_bn"),
    "efficientnetb5": Keras("EfficientNetB5", "block4a_project_bn"),
    "efficientnetb6": Keras("EfficientNetB6", "block4a_project_bn"),
    "efficientnetb7": Keras("EfficientNetB7", "block4a_project_bn"),
    "efficientnetv2b0": Keras("EfficientNetV2B0", "block3b_add"),
    "efficientnetv2b1": Keras("EfficientNetV2B1", "block3b_add"),
    "efficientnetv2b2": Keras("EfficientNetV2B2", "block3b_add"),
    "efficientnetv2b3": Keras("EfficientNetV2B3", "block3b_add"),
    "efficientnetv2l": Keras("EfficientNetV2L", "block3b_add"),
    "efficientnetv2m": Keras("EfficientNetV2M", "block3b_add"),
    "efficientnetv2s": Keras("EfficientNetV2S", "block3b_add"),
    "inceptionresnetv2": Keras("InceptionResNetV2", "mixed_6a", 107),
    "inceptionv3": Keras("InceptionV3", "mixed6", 107),
    "mobilenet": Keras("MobileNet", "conv_pw_6_relu"),
    "mobilenetv2": Keras("MobileNetV2", "block_6_expand_relu"),
    "mobilenetv3large": Keras("MobileNetV3Large", "expanded_conv_8_project_bn"),
    "mobilenetv3small": Keras("MobileNetV3Small", "expanded_conv_5_project_bn"),
    "nasnetlarge": Keras("NASNetLarge", "normal_concat_8"),
    "nasnetmobile": Keras("NASNetMobile", "normal_concat_5"),
    "resnet50": Keras("ResNet50", "conv3_block4_out"),
    "resnet50v2": Keras("ResNet50V2", "conv3_block3_out"),
    "resnet101": Keras("ResNet101", "conv4_block11_out"),
    "resnet101v2": Keras("ResNet101V2", "conv4_block11_out"),
    "resnet152": Keras("ResNet152", "conv4_block18_out"),
    "resnet152v2": Keras("ResNet152V2", "conv4_block18_out"),
    "vgg16": Keras("VGG16", "block3_conv3"),
    "vgg19": Keras("VGG19", "block3_conv3"),
    "xception": Keras("Xception", "block6_sepconv3_bn"),
}
