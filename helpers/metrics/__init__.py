"""How good are the images, and how sure is that?"""
