"""The page of `sail demo --page`: features of an image to look at in a browser; needs the extra `[demo]`."""

import os

# gradio reads it when it is imported, which is after this.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
