import os
from importlib.metadata import version

import discord
import yarl
from discord import app_commands

from answer import answer

print("version", version("discord.py"), flush=True)
SIM = os.environ["SIM"]
discord.http.Route.BASE = f"{SIM}/api/v10"
discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(SIM.replace("http", "ws"))

intents = discord.Intents.default()
intents.message_content = True
client = discord.AutoShardedClient(intents=intents)
tree = app_commands.CommandTree(client)


class Form(discord.ui.Modal, title="Form"):
    why = discord.ui.TextInput(label="Why", custom_id="why")

    def __init__(self):
        super().__init__(custom_id="form")

    async def on_submit(self, interaction):
        await interaction.response.send_message(self.why.value)


class Panel(discord.ui.View):
    @discord.ui.button(label="Go", custom_id="go")
    async def go(self, interaction, button):
        await interaction.response.send_modal(Form())


@tree.command(description="Says hello")
async def hello(interaction: discord.Interaction):
    await interaction.response.send_message("hello")


@tree.command(description="Asks")
async def ask(interaction: discord.Interaction, what: str):
    await interaction.response.send_message(what, view=Panel())


@ask.autocomplete("what")
async def complete(interaction, current):
    return [app_commands.Choice(name="apple", value="apple")]


@client.event
async def on_ready():
    await tree.sync()
    await client.change_presence(activity=discord.Game("chess"))


@client.event
async def on_message(message):
    await answer(message, discord.File)


client.run(os.environ["TOKEN"])
