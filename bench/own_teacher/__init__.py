"""Two benchmarks with a teacher and data that are not the engine's: glyphs of fonts, and emoji.

They answer what a user asks: how close does a student come without data, against the same student trained on
the real data, and against one that saw only noise? The data sets are rendered here from packages of Debian
and npm. Neither the artwork nor anything made from it is part of this project.
"""
