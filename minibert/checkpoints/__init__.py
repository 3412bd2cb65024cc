"""Models on disk and on the Hub: where they lie, how their files are read, and conversion.

hub.py           where a model lies: embedded, folder, file, Hugging Face Hub
safetensors.py   safetensors files, memory-mapped and checked
torch_pickle.py  reads pytorch_model.bin without torch and without executing it
vocabularies.py  loads a tokenizer from whatever files it lies in
splitters.py     each form that its vocabulary may have
sentencepiece.py SentencePiece models, without their library
layouts.py       how matrices of 4 to 8 bits lie in a file
conversion.py    minibert convert
"""
