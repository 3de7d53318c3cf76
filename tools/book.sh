#!/usr/bin/env bash
# The pages of the repository as a site that can be searched: target/book/index.html. Every link of it is followed.
#   tools/book.sh         makes it
#   tools/book.sh serve   makes it, and serves it until Ctrl-C
# Needs `cargo install --locked mdbook`.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v mdbook >/dev/null; then
    echo "SKIPPED: mdbook is not installed"
    exit 0
fi
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
pages=$target/book-pages
book=$target/book

# The pages lie where they do in the repository, so that their links to each other lead to the same places. With them goes all
# that they lead to.
rm -rf "$pages" "$book"
mkdir -p "$pages"
git ls-files -z --cached --others --exclude-standard -- '*.md' 'docs/*.svg' 'docs/*.csv' docs/book 'LICENSE-*' fleet/src/rules.rs |
    xargs -0 cp --parents -t "$pages"
mv "$pages/docs/book/book.toml" "$pages"
sed 's#](#](docs/#; s#](docs/\.\./#](#' "$pages/docs/SUMMARY.md" >"$pages/SUMMARY.md"
rm "$pages/docs/SUMMARY.md"
# mdbook makes `index.html` of a `README.md`, and leaves the links to it. The list of pages is at the side of each page.
(
    cd "$pages"
    find . -name '*.md' -exec sed -i -E \
        -e 's#(\]\(|\]: )([^) ]*)README\.md#\1\2index.md#g' -e 's#\(docs/SUMMARY\.md\)#(docs/problem.md)#' {} +
    find . -name README.md -execdir mv README.md index.md \;
)
mdbook build "$pages"

# `href` and `src` of each page; `print.html` and `toc.html` have those of the others once more.
cd "$book"
wrong=0 followed=0
while IFS=: read -r page link; do
    case $link in
    *://* | data:* | mailto:* | "javascript:"*) continue ;;
    esac
    followed=$((followed + 1))
    file=${link%%#*} anchor=
    [[ $link == *#* ]] && anchor=${link#*#}
    if [[ -z $file ]]; then file=$page; else file=$(dirname "$page")/$file; fi
    if [[ ! -e $file ]]; then
        echo "$page: $link is not there"
        wrong=$((wrong + 1))
    elif [[ -n $anchor && -f $file ]] && ! grep -q "id=\"$anchor\"" "$file"; then
        echo "$page: $link: there is no such heading"
        wrong=$((wrong + 1))
    fi
done < <(grep -roE --include='*.html' --exclude=print.html --exclude=toc.html --exclude=404.html \
    '(href|src)="[^"]*"' . | sed -E 's/(href|src)="//; s/"$//' | sort -u)
echo "$(find . -name '*.html' | wc -l) pages, $followed links, $wrong of them wrong: $book/index.html"
((wrong == 0 && followed > 1000))
if [[ ${1:-} == serve ]]; then
    mdbook serve "$pages"
fi
