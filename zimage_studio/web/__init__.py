"""What stands around Gradio: the parent application, its guard, login, health, public link and stop."""
