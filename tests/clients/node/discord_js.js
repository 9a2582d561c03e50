const {
  ActionRowBuilder, ButtonBuilder, ButtonStyle, Client, Events, GatewayIntentBits, ModalBuilder,
  TextInputBuilder, TextInputStyle, version,
} = require("discord.js");

console.log("version", version);
const { Guilds, GuildMessages, MessageContent } = GatewayIntentBits;
const client = new Client({
  intents: [Guilds, GuildMessages, MessageContent],
  shards: "auto",
  rest: { api: `${process.env.SIM}/api` },
});

client.once(Events.ClientReady, async () => {
  await client.application.commands.set([
    { name: "hello", description: "Says hello" },
    {
      name: "ask",
      description: "Asks",
      options: [{ type: 3, name: "what", description: "What", required: true, autocomplete: true }],
    },
  ]);
  client.user.setPresence({ activities: [{ name: "chess" }], status: "idle" });
});

client.on(Events.MessageCreate, async (message) => {
  if (message.content !== "!ping") return;
  const answer = await message.reply("pong");
  await answer.edit("pong!");
  await message.react("👍");
  await message.channel.send({ files: [{ attachment: Buffer.from("meow"), name: "cat.txt" }] });
  await answer.delete();
});

client.on(Events.InteractionCreate, async (interaction) => {
  if (interaction.isAutocomplete()) {
    await interaction.respond([{ name: "apple", value: "apple" }]);
  } else if (interaction.isChatInputCommand() && interaction.commandName === "hello") {
    await interaction.reply({ content: "hello", withResponse: true });
  } else if (interaction.isChatInputCommand()) {
    const button = new ButtonBuilder().setCustomId("go").setLabel("Go").setStyle(ButtonStyle.Primary);
    await interaction.deferReply();
    await interaction.editReply({
      content: interaction.options.getString("what"),
      components: [new ActionRowBuilder().addComponents(button)],
    });
  } else if (interaction.isButton()) {
    const why = new TextInputBuilder().setCustomId("why").setLabel("Why").setStyle(TextInputStyle.Short);
    const modal = new ModalBuilder().setCustomId("form").setTitle("Form");
    await interaction.showModal(modal.addComponents(new ActionRowBuilder().addComponents(why)));
  } else if (interaction.isModalSubmit()) {
    await interaction.reply(interaction.fields.getTextInputValue("why"));
  }
});

client.login(process.env.TOKEN);
