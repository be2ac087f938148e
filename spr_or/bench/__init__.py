"""Measurements that anyone can repeat: what `spr-or bench` prints."""
