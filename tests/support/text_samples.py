"""Text of every kind that a tokenizer meets, and a corpus to train tiny ones on."""

from __future__ import annotations

SAMPLES = [
    "",
    " ",
    "a",
    "Hello world",
    "Hello, world! It's we'll I'd THEY'VE don't",
    "The quick  brown   fox    jumps\tover\t\tthe lazy dog",
    "  two spaces first",
    "trailing spaces   ",
    "\n\n\nthree lines\n\n  then\r\nmore\r\n\r\n",
    "numbers 1 12 123 1234 12345 3.14159 1,000,000 0xFF ½ Ⅻ ٣٤",
    "def f(x: int) -> str:\n    if x == 1:\n\t\treturn f'{x!r}'  # comment\n    return \"\\n\"\n",
    "for (int i=0;i<10;++i){a[i]+=b[i]&0x7f;}//end",
    "Ünïcödé: naïve café, Straße, Ærøskøbing, İstanbul",
    "cafe\u0301 n\u0303 a\u0323\u0302 decomposed \u1e9b\u0323",
    "emoji 😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷 #️⃣",
    "中文没有空格，日本語テキスト、한국어 텍스트 ㄱㄴ",
    "שלום עולם مرحبا بالعالم हिन्दी ไทย ქართული",
    "zero\u200bwidth\u200cjoin\u200der\ufeff bom\u00a0nbsp\u2003em\u3000wide",
    "control \x00\x01\x7f\x1b[0m chars \u2028line\u2029para",
    "math ∑∫√∞≠ ℝℂ 𝔸𝕓𝓒 x² ½",
    "<s> and </s> and <unk> in text <|end|>x <|end|>",
    "<|user|>\n Hi there<|end|>\n<|assistant|>\n",
    "▁ the metaspace ▁▁ itself",
    "a" * 300,
    "ab" * 50 + " " * 100 + "\n" * 40 + "\t" * 7,
    "https://example.org/a/b?c=d&e=f#g user@example.com",
    "MixedCase camelCaseWords HTTPServer XMLHttpRequest snake_case_name",
    "\U0010ffff\ue000 private \ud7ff",
]

CORPUS = [
    "Hello world, this is a test of the tokenizer.",
    "The quick brown fox jumps over the lazy dog.",
    "It's a fine day, isn't it? We'll see; they've gone and I'd stay.",
    "def function(argument):\n    return argument + 1\n",
    "    if value == 123:\n        print('value', value)\n",
    "L'été à la plage, déjà vu, Straße und Ärger.",
    "numbers 123 456 789 1000 2024 3.14",
    "中文没有空格 日本語テキスト 한국어 텍스트",
    "MixedCase camelCase HTTPServer snake_case the and of to in",
    "cafe\u0301 emoji 😀 spaces   and    tabs\t\tand\n\nlines",
] * 4
