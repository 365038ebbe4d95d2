// Words in which two texts differ, by a longest common subsequence.
const diff = (function () {
  const WORD = /(\s*)([\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[\p{L}\p{M}\p{N}]+(?:['’-][\p{L}\p{M}\p{N}]+)*|[^\s])/gu;
  const MOST = 4_000_000; // cells of the table; beyond it only what both texts begin and end with is common

  // Every word with the space before it.
  function words(text) {
    return [...text.matchAll(WORD)].map(([, space, word]) => ({ space, word }));
  }

  // Both texts in reading order as [kind, space, text]: kind "=" is in both, "+" in `text` alone, "-" in `base` alone.
  function parts(base, text) {
    const [a, b] = [words(base), words(text)];
    const same = (i, j) => a[i].word === b[j].word;
    const shorter = Math.min(a.length, b.length);
    let start = 0, end = 0;
    while (start < shorter && same(start, start)) start++;
    while (end < shorter - start && same(a.length - 1 - end, b.length - 1 - end)) end++;
    const changed = middle(a.slice(start, a.length - end), b.slice(start, b.length - end));
    const kept = (some) => some.map((one) => ["=", one]);
    return joined([...kept(b.slice(0, start)), ...changed, ...kept(b.slice(b.length - end))]);
  }

  function middle(a, b) {
    const [n, m] = [a.length, b.length];
    const gone = (some) => some.map((one) => ["-", one]);
    const come = (some) => some.map((one) => ["+", one]);
    if (!n || !m || n * m > MOST) return [...gone(a), ...come(b)];
    const width = m + 1;
    const length = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--)
      for (let j = m - 1; j >= 0; j--)
        length[i * width + j] = a[i].word === b[j].word
          ? length[(i + 1) * width + j + 1] + 1
          : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    const found = [];
    let i = 0, j = 0;
    while (i < n && j < m) {
      if (a[i].word === b[j].word) { found.push(["=", b[j]]); i++; j++; }
      else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) found.push(["-", a[i++]]);
      else found.push(["+", b[j++]]);
    }
    return [...found, ...gone(a.slice(i)), ...come(b.slice(j))];
  }

  // Neighbours of one kind as one part.
  function joined(found) {
    const result = [];
    for (const [kind, { space, word }] of found) {
      const last = result[result.length - 1];
      if (last && last[0] === kind) last[2] += space + word;
      else result.push([kind, space, word]);
    }
    return result;
  }

  // Share of words that two texts have in common, 1 for equal ones.
  function alike(base, text) {
    const [a, b] = [words(base), words(text)];
    const left = new Map();
    for (const { word } of a) left.set(word, (left.get(word) || 0) + 1);
    let common = 0;
    for (const { word } of b) if (left.get(word) > 0) { common++; left.set(word, left.get(word) - 1); }
    return a.length + b.length ? (2 * common) / (a.length + b.length) : 1;
  }

  return { parts, alike };
})();
