"""The program: settings in, a running Realtime out."""

import gc
import os
import signal

import pulumi
from pulumi.runtime import config

import settings
from components.stack import RealtimeStack

# When a resource fails, the engine interrupts the program: its diagnostics say why, a traceback would bury them.
signal.signal(signal.SIGINT, lambda *_: os._exit(130))

# What the imports made lives as long as the program: looking through it for garbage, as Python does once more at its
# end, would take a tenth of a preview.
gc.freeze()

try:
    stack_settings = settings.load(
        {**config.get_config_env(), **config.CONFIG.get()}, stack=pulumi.get_stack(), environ=os.environ
    )
    stack = RealtimeStack(stack_settings.name, settings=stack_settings)
except settings.SettingsError as faulty:
    raise pulumi.RunError(str(faulty)) from None

if stack_settings.rotation is not None:
    pulumi.log.warn(
        f"the rotation of {stack_settings.rotation.key} is under way; if it was cut short, "
        f"`make up STACK={stack_settings.stack}` finishes it"
    )

private_key = f"{settings.NAMESPACE}:{settings.PRIVATE_KEY}"
if stack_settings.jwt.private_key is not None and not config.is_config_secret(private_key):
    raise pulumi.RunError(
        f"{private_key}: is in plain text; write it encrypted: "
        f"`pulumi config get {settings.PRIVATE_KEY} | pulumi config set --secret {settings.PRIVATE_KEY}`"
    )

for output, value in stack.outputs.items():
    pulumi.export(output, value)
