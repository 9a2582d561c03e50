use serenity::all::{
    ActivityData, ClientBuilder, Command, Context, CreateAttachment, CreateCommand,
    CreateInteractionResponse, CreateInteractionResponseMessage, CreateMessage, EditMessage,
    EventHandler, GatewayIntents, HttpBuilder, Interaction, Message, OnlineStatus, ReactionType,
    Ready,
};
use serenity::async_trait;

struct Bot;

#[async_trait]
impl EventHandler for Bot {
    async fn ready(&self, context: Context, _: Ready) {
        context.set_presence(Some(ActivityData::playing("chess")), OnlineStatus::Idle);
        let hello = CreateCommand::new("hello").description("Says hello");
        Command::set_global_commands(&context.http, vec![hello])
            .await
            .unwrap();
    }

    async fn message(&self, context: Context, message: Message) {
        if message.content != "!ping" {
            return;
        }

        let mut answer = message.reply(&context, "pong").await.unwrap();
        let edit = EditMessage::new().content("pong!");
        answer.edit(&context, edit).await.unwrap();
        let emoji = ReactionType::Unicode("👍".into());
        message.react(&context, emoji).await.unwrap();
        let cat = CreateAttachment::bytes(b"meow".to_vec(), "cat.txt");
        let file = CreateMessage::new().add_file(cat);
        message
            .channel_id
            .send_message(&context, file)
            .await
            .unwrap();
        answer.delete(&context).await.unwrap();
    }

    async fn interaction_create(&self, context: Context, interaction: Interaction) {
        if let Interaction::Command(command) = interaction {
            let hello = CreateInteractionResponseMessage::new().content("hello");
            let response = CreateInteractionResponse::Message(hello);
            command.create_response(&context, response).await.unwrap();
        }
    }
}

#[tokio::main]
async fn main() {
    println!("version {}", clients::version("serenity"));
    let token = std::env::var("TOKEN").unwrap();
    let http = HttpBuilder::new(&token)
        .proxy(std::env::var("SIM").unwrap())
        .ratelimiter_disabled(true)
        .build();
    let intents = GatewayIntents::non_privileged() | GatewayIntents::MESSAGE_CONTENT;
    let client = ClientBuilder::new_with_http(http, intents).event_handler(Bot);
    let mut client = client.await.unwrap();
    client.start_shards(2).await.unwrap();
}
