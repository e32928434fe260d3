"""The pages: Gradio widgets, handlers of three lines, wiring."""
