"""Measure trained models on text, dialogues and questions."""
