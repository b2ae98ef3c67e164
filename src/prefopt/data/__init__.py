"""Rows in: read from any common layout, checked, counted, cut and split. No torch, no tokenizer."""
