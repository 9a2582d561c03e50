//! Log lines about one shard.

/// Logs a line that begins with the shard, which is also the line's field `shard`. Other fields may
/// follow in braces: `log_shard!(info, shard, { reason = reason }, "stopped: {reason}")`.
macro_rules! log_shard {
    ($level:ident, $shard:expr, { $($key:ident = $value:expr),+ }, $($text:tt)+) => {
        log::$level!(
            shard:% = $shard, $($key:% = $value),+;
            "shard {}: {}", $shard, format_args!($($text)+)
        )
    };
    ($level:ident, $shard:expr, $($text:tt)+) => {
        log::$level!(shard:% = $shard; "shard {}: {}", $shard, format_args!($($text)+))
    };
}

pub(crate) use log_shard;
