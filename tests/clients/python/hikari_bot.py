import os

import hikari

print("version", hikari.__version__, flush=True)
SIM = os.environ["SIM"]
intents = hikari.Intents.ALL_UNPRIVILEGED | hikari.Intents.MESSAGE_CONTENT
bot = hikari.GatewayBot(os.environ["TOKEN"], rest_url=f"{SIM}/api/v10", intents=intents, banner=None)


@bot.listen(hikari.StartedEvent)
async def on_started(event):
    application = await bot.rest.fetch_application()
    hello = bot.rest.slash_command_builder("hello", "Says hello")
    await bot.rest.set_application_commands(application, [hello])
    await bot.update_presence(activity=hikari.Activity(name="chess"))


@bot.listen(hikari.GuildMessageCreateEvent)
async def on_message(event):
    if event.content == "!ping":
        answer = await event.message.respond("pong", reply=True)
        await answer.edit("pong!")
        await event.message.add_reaction("👍")
        await event.message.respond(attachment=hikari.Bytes(b"meow", "cat.txt"))
        await answer.delete()


@bot.listen(hikari.InteractionCreateEvent)
async def on_interaction(event):
    if isinstance(event.interaction, hikari.CommandInteraction):
        kind = hikari.ResponseType.MESSAGE_CREATE
        await event.interaction.create_initial_response(kind, "hello")


bot.run(shard_count=2)
