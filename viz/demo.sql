-- Copyright The my_alloc Authors
-- SPDX-License-Identifier: Apache-2.0

-- What the demo's sqlite3 does, all in memory: a library of 100,000 books is
-- filled, indexed, searched, thinned out and packed.

CREATE TABLE author(id INTEGER PRIMARY KEY, name TEXT, country TEXT);
CREATE TABLE book(id INTEGER PRIMARY KEY, author INTEGER, title TEXT,
                  year INTEGER, pages INTEGER, note TEXT);

-- Load.
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
INSERT INTO author
SELECT i, 'Author ' || i, 'Country ' || (i * 7919 % 97) FROM n;

WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
INSERT INTO book
SELECT i, 1 + i * 48271 % 2000,
       'Title ' || hex(i * 2654435761 % 4294967296),
       1900 + i * 31 % 124, 50 + i * 17 % 900,
       substr('A note about this book that somebody left in the catalogue.',
              1, i % 60)
FROM n;

-- Sort.
CREATE INDEX book_author ON book(author, year);
CREATE INDEX book_title ON book(title);

-- Search.
SELECT country, count(*), sum(pages)
FROM book JOIN author ON author.id = book.author
GROUP BY country ORDER BY sum(pages) DESC LIMIT 3;

SELECT year, length(group_concat(title, ', '))
FROM (SELECT year, title FROM book WHERE pages > 500 ORDER BY title)
GROUP BY year ORDER BY year LIMIT 3;

SELECT a.country, b.country, count(*)
FROM book x JOIN book y ON x.title = y.title
     JOIN author a ON a.id = x.author JOIN author b ON b.id = y.author
GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 3;

-- Thin out, rewrite, pack.
DELETE FROM book WHERE id % 3 = 0;
UPDATE book SET note = note || note WHERE id % 5 = 0;
SELECT count(DISTINCT title), max(length(note)) FROM book;
DROP INDEX book_title;
DELETE FROM book WHERE year < 1960;
VACUUM;
SELECT count(*), avg(pages) FROM book;
