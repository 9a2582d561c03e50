//! The start of all examples: reads the token from `DISCORD_TOKEN` and, for a simulated gateway,
//! its URL from `DISCORD_REST_URL`.

use std::{env, process};

use threadcord::{Config, Error, Intents, Token};

pub(crate) fn config(intents: Intents) -> Result<Config, Error> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let token = env::var("DISCORD_TOKEN").unwrap_or_else(|_| {
        eprintln!("DISCORD_TOKEN is not set; the README says how to try this without a bot");
        process::exit(2)
    });
    let config = Config::new(Token::new(token)?, intents);
    Ok(match env::var("DISCORD_REST_URL") {
        Ok(url) => config.rest_url(url),
        Err(_) => config,
    })
}
