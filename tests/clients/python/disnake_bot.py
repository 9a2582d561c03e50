import os

import disnake
from disnake.ext import commands

from answer import answer

print("version", disnake.__version__, flush=True)
SIM = os.environ["SIM"]
disnake.http.Route.BASE = f"{SIM}/api/v10"

intents = disnake.Intents.default()
intents.message_content = True
bot = commands.AutoShardedInteractionBot(intents=intents)


class Form(disnake.ui.Modal):
    def __init__(self):
        why = disnake.ui.TextInput(label="Why", custom_id="why")
        super().__init__(title="Form", custom_id="form", components=[why])

    async def callback(self, interaction):
        await interaction.response.send_message(interaction.text_values["why"])


class Panel(disnake.ui.View):
    @disnake.ui.button(label="Go", custom_id="go")
    async def go(self, button, interaction):
        await interaction.response.send_modal(Form())


@bot.slash_command(description="Says hello")
async def hello(interaction):
    await interaction.response.send_message("hello")


async def complete(interaction, current):
    return ["apple"]


@bot.slash_command(description="Asks")
async def ask(interaction, what: str = commands.Param(autocomplete=complete)):
    await interaction.response.send_message(what, view=Panel())


@bot.event
async def on_ready():
    await bot.change_presence(activity=disnake.Game("chess"))


@bot.event
async def on_message(message):
    await answer(message, disnake.File)


bot.run(os.environ["TOKEN"])
