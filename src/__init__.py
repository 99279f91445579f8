"""Two-stage retrieval: a fast first stage, an accurate cross-encoder, an honest score.

Rooms, in the order in which data flows. A room may import the rooms above it in this list, none below:
``core``, ``models``, ``engine``, ``stages``, ``quality``, ``insight``, then :mod:`src.pipeline`.
"""
