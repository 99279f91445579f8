"""Breaks the real pipeline on purpose and checks that nothing is lost and nothing made up."""
