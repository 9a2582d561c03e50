import io
import os
from importlib.metadata import version

import interactions
from interactions.api.http.route import Route

print("version", version("discord-py-interactions"), flush=True)
SIM = os.environ["SIM"]
Route.BASE = f"{SIM}/api/v10"

intents = interactions.Intents.DEFAULT | interactions.Intents.MESSAGE_CONTENT
bot = interactions.AutoShardedClient(intents=intents, total_shards=2)


@interactions.slash_command(name="hello", description="Says hello")
async def hello(context):
    await context.send("hello")


@interactions.listen(interactions.events.Startup)
async def on_startup():
    await bot.change_presence(activity=interactions.Activity(name="chess"))


@interactions.listen(interactions.events.MessageCreate)
async def on_message(event):
    message = event.message
    if message.content == "!ping":
        answer = await message.reply("pong")
        await answer.edit(content="pong!")
        await message.add_reaction("👍")
        file = interactions.File(io.BytesIO(b"meow"), file_name="cat.txt")
        await message.channel.send(file=file)
        await answer.delete()


bot.start(os.environ["TOKEN"])
