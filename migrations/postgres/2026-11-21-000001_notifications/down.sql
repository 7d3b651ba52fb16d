DROP TABLE projections;
DROP TABLE notifications;
