"""Labelled images in the forms that people keep them in: one file a form, all behind one interface (reader.py), all streaming."""
