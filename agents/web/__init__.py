"""Play in the browser: a websocket server around the Session of `neuralsim.agents.teleop`, and its page."""
