//! DeBERTa: attention whose scores also depend on how far apart two tokens are, each through embeddings of its own.
//!
//! The score of query `i` and key `j` has up to three terms, `(q_i . k_j + q_i . kr[d] + k_j . qr[d]) / sqrt(head_dim * terms)`, where `kr` and
//! `qr` are projections of one table of relative positions and `d` is the row for the distance `i - j`. DeBERTa gives each distance a row;
//! v2 and v3 let far distances share logarithmic buckets, and project the table with the weights of the content itself.
//!
//! Source: He et al., "DeBERTa", 2020, section 3; He et al., "DeBERTaV3", 2021; `modeling_deberta.py` and `modeling_deberta_v2.py` of Hugging
//! Face transformers, whose results these definitions reproduce.

use serde_json::Value;

use super::encoder::divides;
use super::fields::Fields;
use super::{Activation, ConfigError, EncoderConfig, EncoderFamily};

/// Attention that knows the distance of two tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct RelativeAttention {
    /// The table of relative positions has `2 * span` rows, of which row `span` is for distance 0.
    pub span: usize,
    /// Distances beyond `span / 2` share buckets that grow logarithmically, so that this distance reaches the last of them. Without it each
    /// distance has a row of its own.
    pub bucketed_to: Option<usize>,
    /// Whether scores have the term of content to position, `q_i . kr[d]`.
    pub content_to_position: bool,
    /// Whether scores have the term of position to content, `k_j . qr[d]`.
    pub position_to_content: bool,
    /// Whether the table is projected by the layer's own key and query weights, instead of weights for positions.
    pub shared_projections: bool,
    /// Whether the table passes a layer norm first.
    pub normalised: bool,
}

impl RelativeAttention {
    /// The row of the table for a query that stands `distance` after its key (before it, if negative). Never decreases as `distance` grows.
    pub fn row(&self, distance: i64) -> usize {
        let span = self.span as i64;
        (self.bucket(distance) + span).clamp(0, 2 * span - 1) as usize
    }

    /// Terms of a score.
    pub fn terms(&self) -> usize {
        1 + usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }

    /// In f32, step by step as transformers does, so that no distance lands in a neighbouring bucket.
    fn bucket(&self, distance: i64) -> i64 {
        let (Some(farthest), middle) = (self.bucketed_to, self.span as i64 / 2) else { return distance };
        if distance.abs() <= middle {
            return distance;
        }
        let times = distance.unsigned_abs() as f32 / middle as f32;
        let most = ((farthest as f64 - 1.0) / middle as f64) as f32;
        let bucket = (times.ln() / most.ln() * (middle - 1) as f32).ceil() as i64 + middle;
        bucket * distance.signum()
    }
}

/// A convolution over neighbouring tokens: `layer_norm(first layer's output + activation(convolution(embeddings)))` is what the second layer
/// gets. Tokens past either end of a sequence count as zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct Convolution {
    /// Tokens that one output sees, itself in the middle; odd.
    pub width: usize,
    /// What is applied to its outputs.
    pub activation: Activation,
}

/// Fields of both versions.
const FIELDS: [&str; 21] = [
    "attention_head_size",
    "conv_act",
    "conv_groups",
    "conv_kernel_size",
    "embedding_size",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "max_relative_positions",
    "norm_rel_ebd",
    "num_attention_heads",
    "num_hidden_layers",
    "pos_att_type",
    "position_biased_input",
    "position_buckets",
    "relative_attention",
    "share_att_key",
    "type_vocab_size",
    "vocab_size",
];

/// Settings of training and of heads that this engine does not run.
const UNUSED: [&str; 7] =
    ["legacy", "padding_idx", "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size", "pos_dropout", "tie_word_embeddings"];

pub(super) fn deberta(fields: &Fields<'_>) -> Result<EncoderConfig, ConfigError> {
    // Not read by transformers' first version, so that their presence says that the file belongs to another.
    for field in ["position_buckets", "norm_rel_ebd", "share_att_key", "conv_kernel_size"] {
        let off = match fields.value(field) {
            None | Some(Value::Bool(false)) => true,
            Some(value) => value.as_i64().is_some_and(|number| number <= 0) || value.as_str() == Some("none"),
        };
        if !off {
            return Err(fields.error(field, "belongs to DeBERTa v2 and v3", "set `model_type` to deberta-v2, or remove the field"));
        }
    }
    config(fields, EncoderFamily::Deberta, None)
}

pub(super) fn deberta_v2(fields: &Fields<'_>) -> Result<EncoderConfig, ConfigError> {
    let convolution = match fields.optional_count("conv_kernel_size")? {
        None => None,
        Some(width) if width.is_multiple_of(2) => {
            return Err(fields.error("conv_kernel_size", format!("is {width}"), "only odd widths are supported: they keep the length"));
        }
        Some(width) => {
            if fields.optional_size("conv_groups")?.unwrap_or(1) != 1 {
                return Err(fields.error("conv_groups", "is not 1", "only convolutions over all channels are supported"));
            }
            if fields.text("conv_act")?.unwrap_or("tanh") == "tanh" {
                return Err(fields.error(
                    "conv_act",
                    "is tanh, its default where it is missing, which this engine does not compute",
                    "use a model with gelu, as DeBERTa v2 xlarge has",
                ));
            }
            Some(Convolution { width, activation: Activation::from_field(fields, "conv_act", Activation::Gelu)? })
        }
    };
    config(fields, EncoderFamily::DebertaV2, convolution)
}

fn config(fields: &Fields<'_>, family: EncoderFamily, convolution: Option<Convolution>) -> Result<EncoderConfig, ConfigError> {
    let config = EncoderConfig {
        family,
        hidden: fields.size("hidden_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads: fields.size("num_attention_heads")?,
        intermediate: fields.size("intermediate_size")?,
        vocab: fields.size("vocab_size")?,
        max_positions: fields.optional_size("max_position_embeddings")?.unwrap_or(512),
        absolute_positions: fields.flag("position_biased_input")?.unwrap_or(true),
        relative: None,
        convolution,
        token_types: fields.optional_count("type_vocab_size")?.unwrap_or(0),
        layer_norm_epsilon: fields.optional_positive("layer_norm_eps")?.unwrap_or(1e-7) as f32,
        activation: Activation::from_field(fields, "hidden_act", Activation::Gelu)?,
    };
    divides(fields, "num_attention_heads", config.heads, "hidden_size", config.hidden)?;
    for (field, implied) in [("embedding_size", config.hidden), ("attention_head_size", config.head_dim())] {
        if fields.optional_size(field)?.is_some_and(|size| size != implied) {
            return Err(fields.error(field, format!("is not {implied}, as the other sizes imply"), "other widths are not supported"));
        }
    }
    let relative = relative(fields, family, config.max_positions)?;
    fields.refuse_unknown(&[FIELDS.as_slice(), UNUSED.as_slice()].concat())?;
    Ok(EncoderConfig { relative: Some(relative), ..config })
}

fn relative(fields: &Fields<'_>, family: EncoderFamily, max_positions: usize) -> Result<RelativeAttention, ConfigError> {
    if fields.flag("relative_attention")? != Some(true) {
        return Err(fields.error("relative_attention", "is not true", "only DeBERTa with relative positions is supported"));
    }
    let (mut content_to_position, mut position_to_content) = (false, false);
    for kind in attention_types(fields)? {
        match kind.as_str() {
            "c2p" => content_to_position = true,
            "p2c" => position_to_content = true,
            _ => return Err(fields.error("pos_att_type", format!("names `{kind}`"), "only c2p and p2c are supported")),
        }
    }
    let farthest = fields.optional_count("max_relative_positions")?.unwrap_or(max_positions);
    let buckets = fields.optional_count("position_buckets")?;
    if let Some(buckets) = buckets
        && (buckets < 4 || farthest <= buckets / 2 + 1)
    {
        return Err(fields.error(
            "position_buckets",
            format!("is {buckets} where the farthest distance is {farthest}"),
            "give at least 4, and less than twice the farthest distance",
        ));
    }
    let normalised = match fields.text("norm_rel_ebd")?.map(str::trim) {
        None | Some("none") => false,
        Some("layer_norm") => true,
        Some(other) => return Err(fields.error("norm_rel_ebd", format!("is `{other}`"), "only layer_norm and none are supported")),
    };
    Ok(RelativeAttention {
        span: buckets.unwrap_or(farthest),
        bucketed_to: buckets.map(|_| farthest),
        content_to_position,
        position_to_content,
        shared_projections: family == EncoderFamily::DebertaV2 && fields.flag("share_att_key")?.unwrap_or(false),
        normalised,
    })
}

/// `"p2c|c2p"`, or a list of the two.
fn attention_types(fields: &Fields<'_>) -> Result<Vec<String>, ConfigError> {
    let wrong = || fields.error("pos_att_type", "is neither a string nor a list of strings", "write \"c2p|p2c\"");
    match fields.value("pos_att_type") {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(text.to_lowercase().split('|').map(|kind| kind.trim().to_owned()).collect()),
        Some(Value::Array(list)) => list.iter().map(|kind| kind.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(span: usize, bucketed_to: Option<usize>) -> RelativeAttention {
        RelativeAttention {
            span,
            bucketed_to,
            content_to_position: true,
            position_to_content: true,
            shared_projections: true,
            normalised: true,
        }
    }

    /// The first distance of each bucket beyond 128, by transformers' `make_log_bucket_position(distances, 256, 512)`.
    #[test]
    fn distances_share_buckets_as_in_transformers() {
        let relative = relative(256, Some(512));
        let bucket = |distance: i64| relative.row(distance) as i64 - 256;
        for distance in -128..=128 {
            assert_eq!(bucket(distance), distance);
        }
        for (distance, expected) in BUCKETS {
            assert_eq!((bucket(distance), bucket(-distance)), (expected, -expected), "distance {distance}");
            assert_eq!(bucket(distance - 1), expected - 1, "before distance {distance}");
        }
        assert_eq!((relative.row(100_000), relative.row(-100_000)), (511, 0));
    }

    #[test]
    fn without_buckets_every_distance_has_a_row_up_to_the_span() {
        let relative = relative(5, None);
        assert_eq!([-9, -5, -4, 0, 4, 5, 9].map(|distance| relative.row(distance)), [0, 0, 1, 5, 9, 9, 9]);
    }

    #[test]
    fn rows_never_decrease_with_the_distance() {
        for relative in [relative(256, Some(512)), relative(16, Some(40)), relative(7, Some(9)), relative(3, None)] {
            let rows: Vec<usize> = (-600..=600).map(|distance| relative.row(distance)).collect();
            assert!(rows.is_sorted(), "{relative:?}");
        }
    }

    #[rustfmt::skip]
    const BUCKETS: [(i64, i64); 127] = [
        (129, 129), (130, 130), (131, 131), (133, 132), (134, 133), (136, 134), (137, 135), (139, 136), (140, 137), (142, 138), (143,
        139), (145, 140), (146, 141), (148, 142), (150, 143), (151, 144), (153, 145), (155, 146), (156, 147), (158, 148), (160, 149),
        (161, 150), (163, 151), (165, 152), (167, 153), (169, 154), (170, 155), (172, 156), (174, 157), (176, 158), (178, 159), (180,
        160), (182, 161), (184, 162), (186, 163), (188, 164), (190, 165), (192, 166), (194, 167), (196, 168), (198, 169), (201, 170),
        (203, 171), (205, 172), (207, 173), (210, 174), (212, 175), (214, 176), (216, 177), (219, 178), (221, 179), (224, 180), (226,
        181), (229, 182), (231, 183), (234, 184), (236, 185), (239, 186), (241, 187), (244, 188), (247, 189), (249, 190), (252, 191),
        (255, 192), (258, 193), (260, 194), (263, 195), (266, 196), (269, 197), (272, 198), (275, 199), (278, 200), (281, 201), (284,
        202), (287, 203), (290, 204), (294, 205), (297, 206), (300, 207), (303, 208), (307, 209), (310, 210), (313, 211), (317, 212),
        (320, 213), (324, 214), (327, 215), (331, 216), (335, 217), (338, 218), (342, 219), (346, 220), (349, 221), (353, 222), (357,
        223), (361, 224), (365, 225), (369, 226), (373, 227), (377, 228), (381, 229), (385, 230), (390, 231), (394, 232), (398, 233),
        (403, 234), (407, 235), (411, 236), (416, 237), (420, 238), (425, 239), (430, 240), (434, 241), (439, 242), (444, 243), (449,
        244), (454, 245), (459, 246), (464, 247), (469, 248), (474, 249), (479, 250), (484, 251), (490, 252), (495, 253), (500, 254),
        (506, 255),
    ];
}
